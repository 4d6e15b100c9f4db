"""Words that an answer must not hold, as the sequences of tokens that spell them."""

from collections.abc import Sequence

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.tokenizer import Tokenizer

MAX_CHARS = 256


def tokenize_words(
    words: Sequence[str] | None, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], ...]:
    """The spellings of each word, with a space before it and without.

    Most tokenizers know a word in the middle of a text and one at its start as different tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words or ():
        word = word.lstrip()
        if not 0 < len(word) <= MAX_CHARS:
            raise InvalidRequestError(
                f"bad_words must be words of 1 to {MAX_CHARS} characters.", param="bad_words"
            )
        plain, spaced = _encode(word, tokenizer), _encode(" " + word, tokenizer)
        sequences[plain] = None
        # One that ends in the other cannot be written without it.
        if spaced[-len(plain) :] != plain:
            sequences[spaced] = None
    return tuple(sequences)


def _encode(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
    return tuple(ids)
