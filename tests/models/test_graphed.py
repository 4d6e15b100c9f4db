"""Recorded decode steps: which one is replayed, how it is padded, and what happens without memory.

A stand-in for the recorder does the work again, so that nothing here needs CUDA.
"""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.graphed import MAX_ROWS, GraphedDecoder, Work, sizes_to_record
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from tests.models.test_fused import make_model

SCRATCH = (0, 1)


class Recorder:
    """Replays by doing the work again, into the tensors of the first time."""

    def __init__(self, *, bytes_per_record: int = 0, fails_below: int = 0) -> None:
        self.free = 1000
        self.num_replays = 0
        self._bytes = bytes_per_record
        self._fails_below = fails_below

    def record(self, work: Work) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        outputs = tuple(output.clone() for output in work())
        if len(outputs[0]) < self._fails_below:
            raise RuntimeError("planted")
        self.free -= self._bytes

        def replay() -> None:
            self.num_replays += 1
            for output, new in zip(outputs, work(), strict=True):
                output.copy_(new)

        return outputs, replay

    def free_bytes(self) -> int:
        return self.free


class Adder:
    """A decoder whose state is the sum of all that a sequence has read, and whose output is it."""

    needs_tiles = False
    config = model = None

    def __init__(self) -> None:
        self.num_rows: list[int] = []

    def decode(
        self, token_ids: Tensor, positions: Tensor, states: Tensor, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.num_rows.append(len(token_ids))
        states[0, target, 0, 0, 0] = states[0, source, 0, 0, 0] + token_ids + 1000 * positions
        hidden = states[0, target, 0, 0]
        return hidden, hidden.isfinite().all(dim=1)

    def hidden(
        self, token_ids: Tensor, positions: Tensor, recurrence: Any, tiles: object = None
    ) -> Tensor:
        rows = recurrence.decode_source, recurrence.decode_target
        hidden, finite = self.decode(token_ids, positions, recurrence.states, *rows)
        recurrence.report_finite(finite)
        return hidden


def make(
    decoder: Any, num_slots: int, sizes: list[int], **options: int
) -> tuple[GraphedDecoder, Tensor, Recorder]:
    states = torch.zeros(1, 2 * num_slots + 2, 1, 1, 1)
    recorder = Recorder(**options)
    return GraphedDecoder(decoder, states, SCRATCH, recorder, sizes), states, recorder


def step(decoder: Any, states: Tensor, slots: list[int], token: int) -> tuple[Tensor, Tensor]:
    """Decode a token of each slot, from its even row to its odd one."""
    even = 2 * torch.tensor(slots)
    recurrence = PooledRecurrence(states, even, even + 1)
    ids = torch.full_like(even, token)
    hidden = decoder.hidden(ids, torch.zeros_like(even), recurrence)
    return hidden.clone(), recurrence.finite_rows().clone()


@pytest.mark.parametrize("max_rows", [1, 3, 8, 100, 256, 5000])
def test_sizes_ascend_to_the_number_of_slots_or_the_largest_worth_recording(max_rows: int) -> None:
    sizes = sizes_to_record(max_rows)

    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == min(max_rows, MAX_ROWS)
    assert len(sizes) < 24
    # From 8 rows on, less than half of a step is padding.
    assert all(b <= 2 * a for a, b in zip(sizes, sizes[1:], strict=False))


def test_a_step_takes_the_smallest_recorded_size_that_holds_it() -> None:
    adder = Adder()
    decoder, states, recorder = make(adder, 8, [1, 4, 6])
    adder.num_rows.clear()

    for num_rows in (1, 2, 4, 5, 6, 7):
        step(decoder, states, list(range(1, num_rows + 1)), token=5)

    assert decoder.sizes == [1, 4, 6]
    assert adder.num_rows == [1, 4, 4, 6, 6, 7]
    # What is larger than any runs as it always did.
    assert recorder.num_replays == 5


def test_padding_touches_no_state_but_scratch_whatever_ran_before() -> None:
    decoder, states, _ = make(Adder(), 8, [4, 8])
    states[0, 2:, 0, 0, 0] = torch.arange(16.0)

    step(decoder, states, [1, 2, 3, 4], token=10)
    before = states.clone()
    hidden, finite = step(decoder, states, [7], token=20)

    changed = (states != before).flatten(1).any(dim=0).nonzero().flatten().tolist()
    assert changed == [15]
    assert hidden.tolist() == [[12.0 + 20.0]]
    assert finite.tolist() == [True]
    assert states[0, SCRATCH[0]] == 0


def test_each_row_says_for_itself_whether_it_is_finite() -> None:
    decoder, states, _ = make(Adder(), 4, [4])
    states[0, 4] = torch.nan

    _, finite = step(decoder, states, [1, 2, 3], token=1)

    assert finite.tolist() == [True, False, True]


def test_prompts_and_other_states_are_not_replayed() -> None:
    decoder, states, recorder = make(Adder(), 4, [4])
    one = torch.tensor([1])

    for recurrence in (
        PooledRecurrence(states, one, one, [PrefillSegment(1, 1, 2, 3)]),
        PooledRecurrence(states.clone(), one, one),
    ):
        decoder.hidden(one, one, recurrence)

    assert recorder.num_replays == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"bytes_per_record": 100}, [4, 6]), ({"fails_below": 4}, [4, 6]), ({"fails_below": 9}, [])],
    ids=str,
)
def test_recording_goes_as_far_as_it_can_and_says_so(
    options: dict[str, int], expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        decoder, states, _ = make(Adder(), 8, [1, 2, 4, 6], **options)

    assert decoder.sizes == expected
    assert "are not recorded" in caplog.text
    for num_rows in (1, 7):
        hidden, _ = step(decoder, states, list(range(1, num_rows + 1)), token=3)
        assert hidden.tolist() == [[3.0]] * num_rows


def test_a_recorded_step_gives_the_bits_of_the_fused_decoder() -> None:
    fused = FusedDecoder(make_model("llama"))
    shape = fused.config.state.state_shape(2 * 4)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(1)).abs()
    states[:, :2] = 0
    device = fused.model.embed_tokens.weight.device
    states = states.to(device)
    recorded = GraphedDecoder(fused, states, SCRATCH, Recorder(), [1, 4])
    ids, even = torch.tensor([5, 6], device=device), torch.tensor([2, 6], device=device)
    found = []

    for decoder in (fused, recorded):
        recurrence = PooledRecurrence(states, even, even + 1)
        hidden = decoder.hidden(ids, ids + 40, recurrence)
        written = states[:, even + 1].clone()
        found.append(SimpleNamespace(hidden=hidden.clone(), states=written))
        states[:, even + 1] = 0

    assert torch.equal(found[0].hidden, found[1].hidden)
    assert torch.equal(found[0].states, found[1].states)
    assert found[0].states.abs().sum() > 0
