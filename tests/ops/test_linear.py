import pytest
import torch

from dijiang_runtime.ops.linear import linear, per_head_linear, prompt_tiles, row_tiles

SHAPES = [(64, 172), (172, 64), (192, 576), (768, 192), (128, 2048), (512, 2048), (100, 37)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_bits_do_not_depend_on_place_or_batch(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[1], shape[0], generator=generator).to(dtype)
    bias = torch.randn(shape[1], generator=generator).to(dtype)
    row = torch.randn(shape[0], generator=generator)
    results = []
    for rows in (16, 32, 80):
        for place in (0, 7, 15, rows - 1):
            x = torch.randn(rows, shape[0], generator=generator)
            x[place] = row
            results.append(linear(x, weight, bias, row_tiles(rows))[place])
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("heads,group", [(1, 6), (3, 2), (6, 1)])
def test_a_rows_bits_do_not_depend_on_place_or_batch_per_head(heads: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for shared in (True, False):
        shape = (32, 24) if shared else (heads, 32, 24)
        weight = torch.randn(*shape, generator=generator)
        row = torch.randn(heads * group, 32, generator=generator)
        results = []
        for rows in (16, 48):
            for place in (0, 3, rows - 1):
                x = torch.randn(rows, heads * group, 32, generator=generator)
                x[place] = row
                results.append(per_head_linear(x, weight, row_tiles(rows))[place])
        assert all(torch.equal(result, results[0]) for result in results)


def test_per_head_linear_gives_each_group_its_own_matrix() -> None:
    x, weight = torch.randn(16, 6, 5), torch.randn(3, 5, 4)
    for tiles in (None, row_tiles(16)):
        out = per_head_linear(x, weight, tiles)
        for head in range(6):
            assert torch.allclose(out[:, head], x[:, head] @ weight[head // 2], atol=1e-5)


def test_tiles_cover_prompts_by_whole_chunks_then_rows() -> None:
    assert row_tiles(1) == (16,)
    assert row_tiles(33) == (16, 16, 16)
    assert prompt_tiles(64) == (64,)
    assert prompt_tiles(130) == (64, 64, 16)
    assert prompt_tiles(5) == (16,)
