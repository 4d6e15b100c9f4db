"""The recurrent and the chunked form of whole models against independent parallel forms."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dijiang_runtime.models.config import ModelConfig, Preset
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.families import config_from_parent, family_of
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from dijiang_runtime.models.weights import TensorSource
from dijiang_runtime.ops.linear import prompt_tiles, row_tiles
from dijiang_runtime.ops.windowed import WindowInputs
from tests.models.hf_parallel import ParallelAttention
from tests.ops.formula import windowed_by_formula

LENGTH = 70
PRESETS = ["official", "dijiang", "dijiang+window"]


class QuadraticRecurrence:
    """The authors' formula, all pairs at once: a recurrence for one sequence from position 0."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        gamma = log_decay.exp().repeat_interleave(group)
        n = torch.arange(q.shape[0])
        lag = (n[:, None] - n[None, :]).clamp(min=0)
        decay = (gamma[:, None, None] ** lag).tril()
        scores = torch.einsum("nhk,jhk->hnj", q, k) * decay
        return torch.einsum("hnj,jhv->nhv", scores, v)

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        return windowed_by_formula(inputs)


def convert(
    parent: PreTrainedModel, folder: Path, preset: Preset
) -> tuple[Decoder, Tensor, Tensor]:
    """Our decoder in float64, token ids [1, T], and the logits of the independent model."""
    hf = json.loads((folder / "config.json").read_text())
    config = config_from_parent(hf, preset)
    model = Decoder(config).double()
    reference = ParallelAttention(parent, preset, seed=1)
    state = dict(family_of(hf).parent_weights(config, TensorSource(folder)))
    model.load_state_dict({**state, **reference.parameters()}, strict=True)
    independent = copy.deepcopy(parent)
    reference.attach(independent)
    token_ids = torch.randint(0, config.vocab_size, (1, LENGTH))
    with torch.inference_mode():
        logits = independent(token_ids, use_cache=False).logits
    return model.eval(), token_ids, logits


def prefill(model: Decoder, ids: Tensor, cuts: list[int]) -> Tensor:
    """Logits [T, V] of one prompt run in parts that end at `cuts`, states kept in a pool."""
    states, caches = empty_states(model.config)
    logits, start, row = [], 0, 0
    for stop in cuts:
        tiles = prompt_tiles(stop - start)
        padded = torch.zeros(sum(tiles), dtype=torch.int64)
        padded[: stop - start] = ids[start:stop]
        segment = PrefillSegment(start=0, length=stop - start, source=2 + row, target=3 - row)
        none = torch.empty(0, dtype=torch.int64)
        recurrence = PooledRecurrence(states, none, none, [segment], caches)
        positions = torch.arange(start, start + sum(tiles)).clamp(max=stop - 1)
        hidden = model.hidden(padded, positions, recurrence, tiles)
        logits.append(model.logits(hidden, tiles)[: stop - start])
        start, row = stop, 1 - row
    return torch.cat(logits)


def decode(model: Decoder, ids: Tensor) -> Tensor:
    """Logits [T, V] of one sequence run token by token, in a padded batch."""
    states, caches = empty_states(model.config)
    logits = []
    for t, token in enumerate(ids):
        batch, positions = torch.zeros(2, 16, dtype=torch.int64)
        batch[0], positions[0] = token, t
        source, target = torch.tensor([2 + t % 2]), torch.tensor([2 + (t + 1) % 2])
        recurrence = PooledRecurrence(states, source, target, caches=caches)
        hidden = model.hidden(batch, positions, recurrence, row_tiles(16))
        logits.append(model.logits(hidden, row_tiles(16))[0])
    return torch.stack(logits)


def empty_states(config: ModelConfig) -> tuple[Tensor, Tensor]:
    spec = config.state
    return (
        torch.zeros(spec.state_shape(4), dtype=torch.float64),
        torch.zeros(spec.cache_shape(4), dtype=torch.float64),
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_model_equals_the_independent_one(
    parent: PreTrainedModel, folder: Path, preset: Preset
) -> None:
    model, token_ids, truth = convert(parent, folder, preset)
    with torch.inference_mode():
        ours = model(token_ids)
    # transformers takes the rotary angles in float32: 70 * 2^-24 = 4e-6 at the last position.
    tolerance = 1e-10 if model.config.rotary_dim == 0 else 2e-4
    assert float(truth.std()) > 0.1
    assert float((ours - truth).abs().max()) < tolerance * float(truth.abs().max())


@pytest.mark.parametrize("preset", PRESETS)
def test_recurrent_chunked_and_parallel_forms_are_one_function(
    parent: PreTrainedModel, folder: Path, preset: Preset
) -> None:
    model, token_ids, _ = convert(parent, folder, preset)
    ids = token_ids[0]
    with torch.inference_mode():
        hidden = model.hidden(ids, torch.arange(LENGTH), QuadraticRecurrence())
        truth = model.logits(hidden)
        for ours in (
            model(token_ids)[0],
            prefill(model, ids, [LENGTH]),
            prefill(model, ids, [64, LENGTH]),
            decode(model, ids),
        ):
            assert float((ours - truth).abs().max()) < 1e-11 * float(truth.abs().max())


def test_float32_is_as_close_to_the_truth_as_float32_can_be(
    parent: PreTrainedModel, folder: Path
) -> None:
    model, token_ids, _ = convert(parent, folder, "official")
    with torch.inference_mode():
        truth = model(token_ids)[0]
        ours = model.float()(token_ids)[0]
    assert float((ours - truth).abs().max()) < 5e-5 * float(truth.abs().max())
