"""`POST /v1/completions`: continue prompts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import (
    NO_LOGPROBS,
    Grammar,
    PositionLogprobs,
    RequestOutput,
    SamplingParams,
)
from dijiang_runtime.tokenizer import Tokenizer
from server.bad_words import tokenize_words
from server.context import ContextDep, ServerContext
from server.generation import Choice, Generation, best_choices, make_requests
from server.protocol.common import MaybeUsage
from server.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionRequest,
)
from server.protocol.logprobs import (
    CompletionLogprobs,
    FirstToken,
    TextOffsets,
    completion_logprobs,
    prompt_logprobs,
)
from server.routes.common import (
    MAX_CHARS_PER_TOKEN,
    AnswerHead,
    admit,
    check_ids,
    collect,
    fit,
    ignored_header,
    json_response,
    off_loop,
    read_grammar,
    read_request,
    usage_so_far,
)
from server.stream_interval import grouped
from server.streaming import EventStream, EventTemplate, HeldTokens, StreamEncoder, event

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and for `echo` as text."""

    token_ids: tuple[int, ...]
    first: FirstToken
    text: str = ""


@router.post("/v1/completions")
async def create_completion(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, CompletionRequest)
    head = admit(context, body, "cmpl")
    prompts = await read_prompts(body, context)
    bad_words = tokenize_words(body.bad_words, context.model.tokenizer)
    grammar = await read_grammar(context, body.read_grammar())
    requests = make_requests(
        context,
        head.id,
        [
            (prompt.token_ids, sampling_params(body, prompt, context, bad_words, grammar))
            for prompt in prompts
        ],
        body,
    )
    generation = Generation(context, requests, body)
    writer = CompletionWriter(body, head, prompts)
    if body.stream:
        stream = CompletionStream(writer, generation)
        encoder = grouped(stream, body.stream_interval)
        return EventStream(context, generation, encoder, ignored_header(body))
    choices = best_choices(await collect(http, context, generation), body)
    answer = writer.completion(
        [writer.choice(index, choice) for index, choice in enumerate(choices)],
        generation.usage(),
    )
    return json_response(answer, ignored_header(body))


async def read_prompts(body: CompletionRequest, context: ServerContext) -> list[Prompt]:
    """The prompts as tokens. What is too much is refused before any of it is tokenised."""
    prompts = body.prompts()
    max_sequences = context.config.max_sequences_per_request
    if len(prompts) * body.num_sequences > max_sequences:
        raise InvalidRequestError(
            f"prompt holds {len(prompts)} prompts; times n or best_of that may be at most "
            f"{max_sequences}.",
            param="prompt",
        )
    info = context.engine.info
    max_chars = MAX_CHARS_PER_TOKEN * info.max_model_len
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_ids(prompt, info, "prompt")
        elif len(prompt) > max_chars:
            raise InvalidRequestError(
                f"prompt must not be longer than {max_chars} characters.", param="prompt"
            )
    return [await read_prompt(prompt, body, context) for prompt in prompts]


async def read_prompt(
    prompt: str | list[int], body: CompletionRequest, context: ServerContext
) -> Prompt:
    """One prompt, with its text if that will be needed."""
    tokenizer = context.model.tokenizer
    if isinstance(prompt, str):
        whole: Sequence[int] = await off_loop(
            len(prompt),
            tokenizer.encode,
            prompt,
            add_special_tokens=body.add_special_tokens is not False,
            allow_special=False,
        )
    else:
        whole = prompt
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    max_model_len = context.engine.info.max_model_len
    ids = body.truncate(whole, max_model_len=max_model_len, max_tokens=max_tokens)
    if not ids:
        raise InvalidRequestError("prompt must hold at least one token.", param="prompt")
    first = first_token(ids[0], tokenizer)
    if not body.echo:
        return Prompt(tuple(ids), first)
    if isinstance(prompt, str) and len(ids) == len(whole):
        return Prompt(tuple(ids), first, prompt)
    return Prompt(tuple(ids), first, tokenizer.decode(ids, False))


def first_token(token_id: int, tokenizer: Tokenizer) -> FirstToken:
    """The first token of a prompt, for the logprobs of an echo."""
    text = tokenizer.decode([token_id], False)
    # Part of a character has no text of its own; a whole one may lose the space before it.
    data = tokenizer.token_bytes(token_id) if "\ufffd" in text else text.encode()
    return FirstToken(token_id, text, data)


def sampling_params(
    body: CompletionRequest,
    prompt: Prompt,
    context: ServerContext,
    bad_words: tuple[tuple[int, ...], ...],
    grammar: Grammar | None,
) -> SamplingParams:
    """The sampling parameters of a prompt's first choice, checked."""
    info = context.engine.info
    max_tokens = fit(
        info,
        len(prompt.token_ids),
        wanted=body.max_tokens,
        default=DEFAULT_MAX_TOKENS,
        param="prompt",
    )
    wanted = NO_LOGPROBS if body.prompt_logprobs is None else body.prompt_logprobs
    if body.echo:
        wanted = max(wanted, body.num_logprobs)
        if max_tokens == 0:
            # The engine has something to do only if somebody wants the prompt's logprobs.
            wanted = max(wanted, 0)
    sampling = body.to_sampling_params(
        context.model.defaults,
        max_tokens=max_tokens,
        prompt_logprobs=wanted,
        bad_words=bad_words,
        grammar=grammar,
    )
    body.validate_sampling(sampling, vocab_size=info.vocab_size, max_logprobs=info.max_logprobs)
    return sampling


class CompletionWriter:
    """Spells the answers to one request."""

    def __init__(self, body: CompletionRequest, head: AnswerHead, prompts: list[Prompt]) -> None:
        self.body = body
        self._head = head
        self._prompts = prompts

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that choice `index` continues."""
        return self._prompts[index // self.body.num_choices]

    def completion(self, choices: list[CompletionChoice], usage: MaybeUsage) -> Completion:
        head = self._head
        return Completion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
            usage=usage,
        )

    def choice(self, index: int, choice: Choice) -> CompletionChoice:
        """A finished answer."""
        prompt = self.prompt_of(index)
        wants_prompt = self.body.prompt_logprobs is not None and choice.prompt_logprobs is not None
        return CompletionChoice(
            index=index,
            text=(prompt.text if self.body.echo else "") + choice.text,
            logprobs=self.logprobs(index, choice.prompt_logprobs, choice.logprobs, TextOffsets()),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            prompt_logprobs=(
                prompt_logprobs(choice.prompt_logprobs or ()) if wants_prompt else msgspec.UNSET
            ),
            prompt_token_ids=prompt.token_ids if self.body.return_token_ids else msgspec.UNSET,
            token_ids=choice.token_ids if self.body.return_token_ids else msgspec.UNSET,
        )

    def logprobs(
        self,
        index: int,
        of_prompt: tuple[PositionLogprobs | None, ...] | None,
        of_output: list[PositionLogprobs],
        offsets: TextOffsets,
    ) -> CompletionLogprobs | None:
        """The logprobs object, with the prompt's tokens first where they are echoed."""
        if self.body.logprobs is None:
            return None
        positions = (*(of_prompt or ()), *of_output) if self.body.echo else of_output
        return completion_logprobs(
            positions,
            self.prompt_of(index).first,
            offsets,
            as_ids=bool(self.body.return_tokens_as_token_ids),
        )


class CompletionStream(StreamEncoder):
    """Spells a stream of completions; see `StreamEncoder`."""

    def __init__(self, writer: CompletionWriter, generation: Generation) -> None:
        self._writer = writer
        self._body = writer.body
        self._generation = generation
        self._held: defaultdict[int, HeldTokens] = defaultdict(HeldTokens)
        self._offsets: dict[int, TextOffsets] = {}
        self._templates: dict[int, EventTemplate] = {}
        body = writer.body
        self._is_plain = (
            body.logprobs is None and not body.return_token_ids and not body.wants_continuous_usage
        )
        """Whether inner events differ in their text alone."""

    def opening(self) -> bytes:
        return b""

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        """One event, or nothing while the text is held back. Held tokens come with the text."""
        if self._is_plain and index in self._offsets and not output.finished:
            return self._template(index).event(output.text) if output.text else b""
        held = self._held[index]
        held.add(output)
        is_first = index not in self._offsets
        prompt = self._writer.prompt_of(index)
        text = prompt.text + output.text if is_first and self._body.echo else output.text
        if not (text or output.finished):
            return b""
        offsets = self._offsets.setdefault(index, TextOffsets())
        wants_ids = self._body.return_token_ids
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._writer.logprobs(index, held.prompt_logprobs, held.logprobs, offsets),
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            prompt_token_ids=prompt.token_ids if wants_ids and is_first else msgspec.UNSET,
            token_ids=held.token_ids if wants_ids else msgspec.UNSET,
        )
        data = event(self._writer.completion([choice], usage_so_far(self._body, self._generation)))
        held.clear()
        return data

    def _template(self, index: int) -> EventTemplate:
        """The events in the middle of a choice."""
        template = self._templates.get(index)
        if template is None:
            usage = usage_so_far(self._body, self._generation)
            template = self._templates[index] = EventTemplate(
                lambda text: self._writer.completion(
                    [CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None)],
                    usage,
                )
            )
        return template

    def closing(self) -> bytes:
        if not self._body.wants_usage:
            return super().closing()
        return event(self._writer.completion([], self._generation.usage())) + super().closing()
