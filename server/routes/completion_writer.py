"""Answers of `/v1/completions` as the client reads them, whole and streamed."""

from collections import defaultdict

import msgspec

from dijiang_runtime.request import PositionLogprobs, RequestOutput
from server.choices import Choice
from server.generation import Generation
from server.protocol.common import MaybeUsage
from server.protocol.completions import Completion, CompletionChoice, CompletionRequest
from server.protocol.logprobs import (
    CompletionLogprobs,
    TextOffsets,
    completion_logprobs,
    prompt_logprobs,
)
from server.routes.common import AnswerHead, usage_so_far
from server.routes.prompts import Prompt
from server.streaming import EventTemplate, HeldTokens, StreamEncoder, event


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
