import pytest
import torch
import torch.nn.functional as F

from dijiang_runtime.ops import activations

PAIRS = {
    "silu": (activations.silu, F.silu),
    "gelu_tanh": (activations.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_activations_agree_with_torch(name: str) -> None:
    ours, reference = PAIRS[name]
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.linspace(-1, 1, 2001)]).double()

    torch.testing.assert_close(ours(x), reference(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_row_comes_out_the_same_wherever_it_stands(name: str, num_threads: int) -> None:
    ours, _ = PAIRS[name]
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for rows, columns in ((16, 131), (48, 1040), (33, 77)):
            x = 3 * torch.randn(rows, columns)
            for shift in (1, 7):
                longer = torch.cat([torch.randn(shift, columns), x, torch.randn(5, columns)])
                assert torch.equal(ours(longer)[shift : shift + rows], ours(x))
    finally:
        torch.set_num_threads(num_threads_before)
