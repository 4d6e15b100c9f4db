"""The fused decoder on a GPU: beside the torch decoder, recorded and not.

`tests/models/test_fused.py` and `tests/ops/triton/` run on the GPU as well where there is one.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.graphed import CudaRecorder, GraphedDecoder, sizes_to_record
from dijiang_runtime.models.loader import cast
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from tests.models.test_fused import NAMES, make_model

pytestmark = pytest.mark.gpu

NUM_SLOTS = 40


def random_states(model: Decoder) -> Tensor:
    """Of all slots, as a decode may find them: feature masses are positive."""
    shape = model.config.state.state_shape(2 * NUM_SLOTS + 2)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(1)).abs().cuda()
    states[:, :2] = 0
    return states


def decode(
    decoder: FusedDecoder | GraphedDecoder, states: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, logits and next states of slots 1, 2, ..., each with a token of its own."""
    slots = torch.arange(1, num_rows + 1, device="cuda")
    recurrence = PooledRecurrence(states, 2 * slots, 2 * slots + 1)
    hidden = decoder.hidden(slots % 90, 3 * slots, recurrence)
    assert recurrence.finite_rows().all()
    logits = decoder.logits(hidden)
    return hidden.clone(), logits, states[:, 2 * slots + 1].clone()


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_of_any_size_has_the_bits_of_one_that_is_not(name: str) -> None:
    with torch.inference_mode():
        model = cast(make_model(name), torch.bfloat16)
        fused, states = FusedDecoder(model), random_states(model)
        sizes = sizes_to_record(NUM_SLOTS)
        recorded = GraphedDecoder(fused, states, (0, 1), CudaRecorder(), sizes)
        assert recorded.sizes == sizes
        alone = decode(fused, states, 1)

        for num_rows in (1, 2, 3, 5, 8, 9, 31, 40, 7, 1):
            expected = decode(fused, states, num_rows)
            got = decode(recorded, states, num_rows)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            # A row does not see how many others there are.
            assert torch.equal(got[0][0], alone[0][0])
            assert torch.equal(got[1][0], alone[1][0])
            assert torch.equal(got[2][:, 0], alone[2][:, 0])
        assert not states[:, 0].any()


def test_a_recorded_step_waits_for_nothing(forbid_waiting: Callable[[], None]) -> None:
    with torch.inference_mode():
        model = make_model("gpt_neox")
        states = random_states(model)
        recorded = GraphedDecoder(FusedDecoder(model), states, (0, 1), CudaRecorder(), [4])
        ids, rows = torch.tensor([5, 6], device="cuda"), torch.tensor([2, 4], device="cuda")
        recurrence = PooledRecurrence(states, rows, rows + 1)
        forbid_waiting()
        recorded.logits(recorded.hidden(ids, ids, recurrence))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_near_the_torch_decoder(name: str) -> None:
    model = make_model(name)
    ids = torch.randint(97, (130,), generator=torch.Generator().manual_seed(3)).cuda()
    with torch.inference_mode():
        truth = copy.deepcopy(model).double()(ids[None])[0]
        fused = FusedDecoder(cast(model, torch.bfloat16))
        states = torch.zeros(model.config.state.state_shape(2), device="cuda")
        empty = ids[:0]
        prefill = PooledRecurrence(states, empty, empty, [PrefillSegment(0, 130, 0, 1)])

        logits = fused.logits(fused.hidden(ids, torch.arange(130, device="cuda"), prefill))

    # bfloat16 keeps 8 bits of a number, and there are two layers of products of them.
    assert float((logits.double() - truth).norm() / truth.norm()) < 0.03
