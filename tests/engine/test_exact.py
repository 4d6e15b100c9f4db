"""Sums of probabilities: near float64's, and the same bits in any order and at any place."""

import pytest
import torch

from dijiang_runtime.engine.exact import largest_weight, log_sum_exp


@pytest.mark.parametrize("vocab_size", [1, 2, 384, 50_257, 262_144])
def test_sums_are_those_of_float64_and_do_not_overflow(vocab_size: int) -> None:
    logits = 6 * torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1))
    logits[1] = 88.0  # All equally likely: the largest sum that there is.
    logits[2, 0] = 3e38

    found = log_sum_exp(logits)

    assert torch.allclose(found, logits.double().logsumexp(-1, keepdim=True), rtol=0, atol=1e-8)
    assert largest_weight(vocab_size) * vocab_size < 2**63


def test_a_row_has_the_same_sum_in_any_order_and_at_any_place() -> None:
    generator = torch.Generator().manual_seed(2)
    row = 3 * torch.randn(5003, generator=generator)
    expected = log_sum_exp(row[None])
    for num_rows, place in ((2, 1), (7, 3), (40, 39)):
        logits = torch.randn(num_rows, 5003, generator=generator)
        logits[place] = row[torch.randperm(5003, generator=generator)]
        assert torch.equal(log_sum_exp(logits)[place], expected[0])
