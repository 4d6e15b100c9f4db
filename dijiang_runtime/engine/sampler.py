"""Logits and each row's sampling parameters to token ids.

The order is that of vLLM: raw logprobs; logit bias and the masks of min_tokens and bad_words;
penalties; the mask of allowed_token_ids or of a grammar; greedy, or temperature, min_p, top_k,
top_p and a draw at one counted random number. So a row's token is a function of its own logits,
parameters, seed and position.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

from torch import Tensor

from dijiang_runtime.engine import adjustments
from dijiang_runtime.engine.device_sampler import DeviceSampler
from dijiang_runtime.engine.logprobs import raw_logprobs
from dijiang_runtime.engine.rng import uniform
from dijiang_runtime.engine.sequence import RawLogprobs, SampledToken, Sequence
from dijiang_runtime.ops.cpu.sampling import Adjustment, LogitKernels, Panels, RowScan
from dijiang_runtime.request import NO_LOGPROBS


def mass_temperature(sequence: Sequence) -> float:
    """The temperature at which the sampler wants the masses of a row's logits; 0: it does not."""
    params = sequence.request.sampling
    if not params.is_greedy and params.top_k <= 0 and params.min_p == 0.0:
        return params.temperature
    return 1.0 if params.logprobs != NO_LOGPROBS else 0.0


class Sampler:
    """Chooses the next token of every row. Keeps nothing between calls."""

    def __init__(self, eos_token_ids: Seq[int], kernels: LogitKernels | None = None) -> None:
        """`kernels` are those for logits on the CPU. None: torch does it, as on a GPU."""
        self._eos_token_ids = tuple(eos_token_ids)
        self.kernels = kernels
        self.on_device = DeviceSampler(eos_token_ids)
        """For logits that the compiled kernels cannot read."""

    def sample(
        self, logits: Tensor, sequences: Seq[Sequence], scan: RowScan | None = None
    ) -> list[SampledToken]:
        """Choose one token for each row.

        Args:
            logits: Shape [n, V], float32, finite. Overwritten.
            sequences: The sequence of each row.
            scan: What a pass over the logits has found, where there was one.
        """
        if (kernels := self.kernels) is None or not kernels.can_read(logits):
            return self.on_device.launch(logits, sequences).read()[0]
        scan, num_tokens = scan or kernels.scan_rows(logits), logits.shape[1]
        panels = scan.panels or Panels([adjustments.mask(s, num_tokens) for s in sequences])
        params = [sequence.request.sampling for sequence in sequences]
        reported = [i for i, p in enumerate(params) if p.logprobs != NO_LOGPROBS]
        # Without panels the likeliest of all was looked for, which may be forbidden.
        adjusted = [
            i
            for i, sequence in enumerate(sequences)
            if sequence.changes_logits or (scan.panels is None and sequence.is_constrained)
        ]
        # A copy of what is about to be changed; most often nothing is.
        is_changed = any(sequences[i].changes_logits for i in reported)
        raw_logits = logits[reported] if is_changed else logits
        raw_panels = panels.rows(reported) if is_changed else panels
        token_ids = list(scan.likeliest)
        if adjusted:
            changes = [self._adjustment(i, sequences[i]) for i in adjusted]
            found = kernels.adjust(logits, changes, panels, least=adjustments.SUPPRESSED)
            for i, token_id in zip(adjusted, found, strict=True):
                token_ids[i] = token_id
        random = [i for i, p in enumerate(params) if not p.is_greedy]
        if random:
            uniforms = [uniform(sequences[i].seed, sequences[i].next_position) for i in random]
            drawn = kernels.draw(logits, random, [params[i] for i in random], uniforms, panels)
            for i, token_id in zip(random, drawn, strict=True):
                token_ids[i] = token_id
        logprobs: dict[int, RawLogprobs] = {}
        if reported:
            chosen = [token_ids[i] for i in reported]
            num_top = [params[i].logprobs for i in reported]
            rows = None if is_changed else reported
            logprobs_are = raw_logprobs(
                raw_logits, chosen, num_top, rows, kernels=kernels, panels=raw_panels
            )
            logprobs = dict(zip(reported, logprobs_are, strict=True))
        return [SampledToken(token_id, logprobs.get(i)) for i, token_id in enumerate(token_ids)]

    def _adjustment(self, row: int, sequence: Sequence) -> Adjustment:
        """Everything that changes one row of logits."""
        params = sequence.request.sampling
        change = Adjustment(row)
        if params.logit_bias:
            change.biases = adjustments.biases(sequence)
        if params.has_bias:
            change.suppressed = adjustments.suppressed(sequence, self._eos_token_ids)
        if params.has_penalties:
            change.penalties, change.seen = params, adjustments.history(sequence)
        return change
