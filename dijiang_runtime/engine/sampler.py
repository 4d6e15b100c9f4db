"""Logits and each row's sampling parameters to token ids.

The order is that of vLLM: raw logprobs; logit bias and the masks of min_tokens and bad_words;
penalties; the mask of allowed_token_ids or of a grammar; greedy, or temperature, min_p, top_k,
top_p and a draw at one counted random number. So a row's token is a function of its own logits,
parameters, seed and position.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from dijiang_runtime.engine import adjustments
from dijiang_runtime.engine.device_sampler import DeviceSampler
from dijiang_runtime.engine.logprobs import raw_logprobs
from dijiang_runtime.engine.rng import uniform
from dijiang_runtime.engine.sequence import RawLogprobs, SampledToken, Sequence
from dijiang_runtime.ops.cpu.sampling import LogitKernels
from dijiang_runtime.request import NO_LOGPROBS


class Sampler:
    """Chooses the next token of every row. Keeps nothing between calls."""

    def __init__(self, eos_token_ids: Seq[int], kernels: LogitKernels | None = None) -> None:
        """`kernels` are those for logits on the CPU. None: torch does it, as on a GPU."""
        self._eos_token_ids = tuple(eos_token_ids)
        self.kernels = kernels
        self.on_device = DeviceSampler(eos_token_ids)
        """For logits that the compiled kernels cannot read."""

    def sample(
        self, logits: Tensor, sequences: Seq[Sequence], likeliest: Seq[int] | None = None
    ) -> list[SampledToken]:
        """Choose one token for each row.

        Args:
            logits: Shape [n, V], float32, finite. Overwritten.
            sequences: The sequence of each row.
            likeliest: The token with the largest logit of each row, where that is known already.
        """
        if (kernels := self.kernels) is None or not kernels.can_read(logits):
            return self.on_device.launch(logits, sequences).read()[0]
        params = [sequence.request.sampling for sequence in sequences]
        reported = [i for i, p in enumerate(params) if p.logprobs != NO_LOGPROBS]
        # A copy of what is about to be changed; most often nothing is.
        adjusted = [i for i, sequence in enumerate(sequences) if adjustments.is_adjusted(sequence)]
        is_changed = not set(adjusted).isdisjoint(reported)
        raw_logits = logits[reported] if is_changed else logits
        for i in adjusted:
            self._adjust(logits[i], sequences[i], kernels)
        token_ids = list(likeliest or kernels.scan_rows(logits)[1])
        if likeliest and (changed := [i for i in adjusted if params[i].is_greedy]):
            for i, token_id in zip(changed, kernels.scan_rows(logits, changed)[1], strict=True):
                token_ids[i] = token_id
        random = [i for i, p in enumerate(params) if not p.is_greedy]
        if random:
            uniforms = [uniform(sequences[i].seed, sequences[i].next_position) for i in random]
            drawn = kernels.draw(logits, random, [params[i] for i in random], uniforms)
            for i, token_id in zip(random, drawn, strict=True):
                token_ids[i] = token_id
        logprobs: dict[int, RawLogprobs] = {}
        if reported:
            chosen = [token_ids[i] for i in reported]
            num_top = [params[i].logprobs for i in reported]
            rows = None if is_changed else reported
            found = raw_logprobs(raw_logits, chosen, num_top, rows, kernels=kernels)
            logprobs = dict(zip(reported, found, strict=True))
        return [SampledToken(token_id, logprobs.get(i)) for i, token_id in enumerate(token_ids)]

    def _adjust(self, row: Tensor, sequence: Sequence, kernels: LogitKernels) -> None:
        """Apply everything that changes one row of logits [V], in place."""
        params = sequence.request.sampling
        if params.logit_bias:
            places, added = (torch.from_numpy(x) for x in adjustments.biases(sequence))
            row.index_add_(0, places, added)
        if params.has_bias:
            lost = adjustments.suppressed(sequence, self._eos_token_ids)
            if lost:
                row[lost] = adjustments.SUPPRESSED
        if params.has_penalties:
            seen = adjustments.history(sequence)
            kernels.penalise(row, seen, params, least=adjustments.SUPPRESSED)
        for mask in adjustments.masks(sequence, len(row)):
            kernels.mask(row, mask.address)
