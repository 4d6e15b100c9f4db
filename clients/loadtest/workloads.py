"""What is sent: conversations of one or several turns, made from a seed alone.

Conversation `i` is the same in every run with the same seed, text and token scale, so that two
servers are asked the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from clients.loadtest.errors import OptionError
from clients.loadtest.lengths import Length, parse_length
from clients.loadtest.text import TokenScale, WordSource

PARAGRAPHS = "paragraphs"
"""Instead of a length: whole paragraphs of the text, as long as they are."""


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """How long everything is. Lengths are specs, in tokens.

    Args:
        prompt_tokens: Of what each turn adds; of the user's message, that is.
        output_tokens: The `max_tokens` of each turn.
        turns: Requests of one conversation; each sends all that came before it.
        think_seconds: From the end of an answer to the next turn.
        shared_prefix_tokens: Of the text that conversations begin with; 0 for none.
        num_prefixes: How many different such texts there are.
    """

    prompt_tokens: str = "uniform:64,192"
    output_tokens: str = "64"
    turns: str = "1"
    think_seconds: float = 0.0
    shared_prefix_tokens: int = 0
    num_prefixes: int = 1


PRESETS: Mapping[str, WorkloadOptions] = {
    "single": WorkloadOptions(),
    "shared-prefix": WorkloadOptions(prompt_tokens="64", shared_prefix_tokens=512),
    "multi-turn": WorkloadOptions(
        prompt_tokens="lognormal:48,0.5", turns="uniform:2,6", think_seconds=1.0
    ),
    "long-context": WorkloadOptions(prompt_tokens="uniform:4096,16384", output_tokens="32"),
}


def workload_options(preset: str, **given: str | float | int | None) -> WorkloadOptions:
    """A preset with what was given put over it.

    Raises:
        OptionError: there is no such preset.
    """
    if preset not in PRESETS:
        raise OptionError(f"workload {preset!r} is none of: {', '.join(PRESETS)}.")
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(PRESETS[preset], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation: what the user adds, and how long the answer may be."""

    text: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one user, and the text that they begin with, which others may share."""

    index: int
    prefix: str
    turns: tuple[Turn, ...]


class Workload:
    """Makes conversations.

    Raises:
        OptionError: a length makes no sense, or paragraphs are asked of a text that has none.
    """

    def __init__(
        self, options: WorkloadOptions, words: WordSource, scale: TokenScale, seed: int
    ) -> None:
        self.options = options
        self._words, self._scale, self._seed = words, scale, seed
        self._prompt: Length | None = None
        if options.prompt_tokens != PARAGRAPHS:
            self._prompt = parse_length(options.prompt_tokens)
        elif not words.paragraphs:
            raise OptionError("whole paragraphs need a text that has some: --text FILE.")
        self._output, self._turns = parse_length(options.output_tokens), parse_length(options.turns)
        num_words = scale.words_for(options.shared_prefix_tokens)
        # Numbered, so that no two begin with the same words however few words there are.
        self._prefixes = [
            f"{number}. " + words.take(num_words, Random(f"{seed} prefix {number}"))
            for number in range(1, options.num_prefixes + 1)
        ]

    def conversation(self, index: int) -> Conversation:
        """Conversation number `index`, from 0 on."""
        rng = Random(f"{self._seed} conversation {index}")
        prefix = rng.choice(self._prefixes) if self.options.shared_prefix_tokens else ""
        turns = []
        for number in range(self._turns.sample(rng)):
            # The chat template and the role markers are tokens too, once for each request.
            overhead = self._scale.overhead if number == 0 and not prefix else 0.0
            turns.append(Turn(self._text(overhead, rng), self._output.sample(rng)))
        return Conversation(index, prefix, tuple(turns))

    def _text(self, overhead: float, rng: Random) -> str:
        if self._prompt is None:
            return self._words.paragraph(rng)
        return self._words.take(self._scale.words_for(self._prompt.sample(rng) - overhead), rng)
