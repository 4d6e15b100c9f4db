"""What a sequence's parameters change about its logits, before anything is changed. No torch.

What does not depend on the step is kept with the sequence.
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from dijiang_runtime.engine.grammar import GrammarState
from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.engine.sequence import Sequence, TokenHistory
from dijiang_runtime.request import SamplingParams

# Below every logit, yet finite: a row of nothing else still has a distribution.
SUPPRESSED = float(np.finfo(np.float32).min)


def is_adjusted(sequence: Sequence) -> bool:
    """Whether anything changes this sequence's logits, or forbids tokens."""
    return sequence.changes_logits or sequence.is_constrained


def depends_on_last_token(sequence: Sequence) -> bool:
    """Whether what changes this sequence's logits can only be told when its last token is known."""
    params = sequence.request.sampling
    return params.has_penalties or bool(params.bad_words) or sequence.matcher is not None


def biases(sequence: Sequence) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The tokens of `logit_bias`, each once, and what is added to each."""
    if sequence.bias is None:
        bias = sequence.request.sampling.logit_bias
        ids, added = np.fromiter(bias.keys(), np.int64), np.fromiter(bias.values(), np.float32)
        sequence.bias = ids, added
    return sequence.bias


def suppressed(sequence: Sequence, eos_token_ids: Seq[int], *, num_unread: int = 0) -> list[int]:
    """The tokens that `min_tokens` and `bad_words` keep from coming next, ascending.

    `num_unread` tokens of the output are not there yet; then there may be no `bad_words`.
    """
    params, output = sequence.request.sampling, sequence.output_token_ids
    tokens = _ends_of_bad_words(params, output)
    if len(output) + num_unread < params.min_tokens:
        tokens.update(params.stop_token_ids)
        if not params.ignore_eos:
            tokens.update(eos_token_ids)
    return sorted(tokens)


def _ends_of_bad_words(params: SamplingParams, output: Seq[int]) -> set[int]:
    """The tokens that would complete a bad word."""
    # The slice is empty for a word of one token, and too short to match where the output is.
    return {
        word[-1]
        for word in params.bad_words
        if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]
    }


def history(sequence: Sequence) -> TokenHistory:
    """The tokens that penalties look at."""
    if sequence.history is None:
        sequence.history = TokenHistory(
            sequence.request.prompt_token_ids, sequence.output_token_ids
        )
    return sequence.history


def mask(sequence: Sequence, vocab_size: int) -> TokenMask | None:
    """The tokens that allowed_token_ids or a grammar, never both, let in; None: all."""
    if not sequence.is_constrained:
        return None
    if isinstance(sequence.matcher, GrammarState):
        assert sequence.matcher.allowed is not None, "the masks of the step are not filled"
        return sequence.matcher.allowed
    allowed = sequence.request.sampling.allowed_token_ids
    if sequence.allowed is None and allowed is not None:
        sequence.allowed = TokenMask.of(allowed, vocab_size)
    return sequence.allowed
