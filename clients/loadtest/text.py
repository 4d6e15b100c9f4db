"""Where the words of prompts come from, and how many words make a token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from clients.loadtest.errors import OptionError

COMMON_WORDS = (
    "a about after all also an and any are as at back be because been before boy but by came can "
    "come could day did do down each even eye father find first for friend from garden get girl "
    "give go good great green had hand has have he help her here him his home house how if in into "
    "is it just kind know large last light like little long look made make man many may me more "
    "mother move much must my name never new next night no not now of off old on one only or other "
    "our out over own part people place play put read red right river said same saw say see she "
    "should show sky small so some story sun take tell than that the their them then there these "
    "they thing think this three time to together told too tree two under up us use very walk want "
    "was water way we well went were what when where which while white who why will with wood word "
    "work world would year yes you young your"
).split()


@dataclass(frozen=True, slots=True)
class WordSource:
    """Words to cut prompts from: consecutive ones of a text, or common ones at random.

    Args:
        words: The text.
        paragraphs: The text's paragraphs, where it has any.
        is_text: False for a mere list of words, whose order means nothing.
    """

    words: tuple[str, ...]
    paragraphs: tuple[str, ...] = ()
    is_text: bool = True

    def take(self, num_words: int, rng: Random) -> str:
        """`num_words` words, another cut at every call; a text begins again after its end."""
        if not self.is_text:
            return " ".join(rng.choices(self.words, k=num_words))
        start = rng.randrange(len(self.words))
        taken = list(self.words[start : start + num_words])
        while len(taken) < num_words:
            taken += self.words[: num_words - len(taken)]
        return " ".join(taken)

    def paragraph(self, rng: Random) -> str:
        """One whole paragraph of the text."""
        return rng.choice(self.paragraphs)


def common_words() -> WordSource:
    """Random common English words: no two prompts alike, so no cache can shorten them."""
    return WordSource(tuple(COMMON_WORDS), is_text=False)


def read_text(file: Path) -> WordSource:
    """The words and paragraphs of a text file.

    Raises:
        OptionError: the file cannot be read, or holds no words.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"the text {file} cannot be read: {exc}") from exc
    paragraphs = [" ".join(part.split()) for part in text.replace("\r\n", "\n").split("\n\n")]
    words = tuple(text.split())
    if not words:
        raise OptionError(f"the text {file} holds no words.")
    return WordSource(words, tuple(part for part in paragraphs if part))


@dataclass(frozen=True, slots=True)
class TokenScale:
    """How the tokens of a request grow with its words: `overhead + tokens_per_word * words`."""

    tokens_per_word: float = 1.3
    overhead: float = 0.0
    is_measured: bool = False

    def words_for(self, num_tokens: float) -> int:
        """How many words make about `num_tokens` tokens; 1 at least."""
        return max(1, round(num_tokens / self.tokens_per_word))


def measure_scale(count_tokens: Callable[[str], int | None], words: WordSource) -> TokenScale:
    """Ask the server how many prompt tokens two texts of its own kind have.

    Args:
        count_tokens: Sends a text and returns the prompt tokens that `usage` reports, if it does.
    """
    # Too long to be blurred by one odd word, short enough for a context of 512 tokens.
    short, long = 20, 200
    rng = Random(0)
    counts = [count_tokens(words.take(num_words, rng)) for num_words in (short, long)]
    if counts[0] is None or counts[1] is None or counts[1] <= counts[0]:
        return TokenScale()
    slope = (counts[1] - counts[0]) / (long - short)
    return TokenScale(slope, max(0.0, counts[0] - slope * short), is_measured=True)
