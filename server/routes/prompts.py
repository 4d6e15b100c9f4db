"""Texts as tokens: the prompts of completions, and what embeddings are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from dijiang_runtime.engine.messages import EngineInfo
from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.tokenizer import Tokenizer
from server.context import ServerContext
from server.protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from server.protocol.logprobs import FirstToken
from server.routes.common import MAX_CHARS_PER_TOKEN, off_loop


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and for `echo` as text."""

    token_ids: tuple[int, ...]
    first: FirstToken
    text: str = ""


async def read_texts(
    texts: Sequence[str | list[int]],
    context: ServerContext,
    *,
    param: str,
    add_special_tokens: bool | None,
) -> list[Sequence[int]]:
    """The tokens of texts, of which some are tokens already. `param` is where the client sent them.

    What is too much is refused before any of it is tokenised.
    """
    info, tokenizer = context.engine.info, context.model.tokenizer
    max_chars = MAX_CHARS_PER_TOKEN * info.max_model_len
    for text in texts:
        if not isinstance(text, str):
            check_ids(text, info, param)
        elif len(text) > max_chars:
            raise InvalidRequestError(
                f"{param} must not be longer than {max_chars} characters.", param=param
            )
    return [
        await off_loop(
            len(text),
            tokenizer.encode,
            text,
            add_special_tokens=add_special_tokens is not False,
            allow_special=False,
        )
        if isinstance(text, str)
        else text
        for text in texts
    ]


async def read_prompts(body: CompletionRequest, context: ServerContext) -> list[Prompt]:
    """The prompts of a completion, with their texts if those will be needed."""
    prompts: Sequence[str | list[int]] = body.prompts()
    max_sequences = context.config.max_sequences_per_request
    if len(prompts) * body.num_sequences > max_sequences:
        raise InvalidRequestError(
            f"prompt holds {len(prompts)} prompts; times n or best_of that may be at most "
            f"{max_sequences}.",
            param="prompt",
        )
    tokens = await read_texts(
        prompts, context, param="prompt", add_special_tokens=body.add_special_tokens
    )
    return [_prompt(*both, body, context) for both in zip(prompts, tokens, strict=True)]


def check_ids(token_ids: list[int], info: EngineInfo, param: str) -> None:
    """Raise `InvalidRequestError` for an id that the model does not have."""
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < info.vocab_size:
            raise InvalidRequestError(
                f"{param} must hold token ids from 0 to {info.vocab_size - 1}.", param=param
            )


def _prompt(
    given: str | list[int], whole: Sequence[int], body: CompletionRequest, context: ServerContext
) -> Prompt:
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    max_model_len = context.engine.info.max_model_len
    ids = body.truncate(whole, max_model_len=max_model_len, max_tokens=max_tokens)
    if not ids:
        raise InvalidRequestError("prompt must hold at least one token.", param="prompt")
    tokenizer = context.model.tokenizer
    first = _first_token(ids[0], tokenizer)
    if not body.echo:
        return Prompt(tuple(ids), first)
    if isinstance(given, str) and len(ids) == len(whole):
        return Prompt(tuple(ids), first, given)
    return Prompt(tuple(ids), first, tokenizer.decode(ids, False))


def _first_token(token_id: int, tokenizer: Tokenizer) -> FirstToken:
    """The first token of a prompt, for the logprobs of an echo."""
    text = tokenizer.decode([token_id], False)
    # Part of a character has no text of its own; a whole one may lose the space before it.
    data = tokenizer.token_bytes(token_id) if "\ufffd" in text else text.encode()
    return FirstToken(token_id, text, data)
