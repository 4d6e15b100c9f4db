"""`POST /v1/responses`: answer a text or a conversation, in OpenAI's newer form."""

import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response as HttpResponse

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import (
    FinishReason,
    PositionLogprobs,
    RequestOutput,
    SamplingParams,
)
from server.context import ContextDep, ServerContext
from server.errors import ErrorBody
from server.generation import Choice, Generation, make_requests
from server.protocol.logprobs import ChatTokenLogprob, chat_logprobs
from server.protocol.response_objects import (
    IncompleteDetails,
    OutputMessage,
    OutputText,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    Status,
)
from server.protocol.responses import OWN_NAMES, ResponsesRequest
from server.routes.chat import read_question as read_chat_question
from server.routes.common import (
    AnswerHead,
    admit,
    collect,
    ignored_header,
    json_response,
    read_request,
)
from server.streaming import EventStream, StreamEncoder

router = APIRouter()

_encoder = msgspec.json.Encoder()


@router.post("/v1/responses")
async def create_response(http: Request, context: ContextDep) -> HttpResponse:
    body = await read_request(http, context, ResponsesRequest)
    head = admit(context, body, "resp")
    prompt, sampling = await read_question(body, context)
    requests = make_requests(context, head.id, [(prompt, sampling)], body)
    generation = Generation(context, requests, body)
    writer = ResponseWriter(body, head, sampling, generation)
    if body.stream:
        return EventStream(context, generation, ResponseStream(writer), ignored_header(body))
    [choice] = await collect(http, context, generation)
    return json_response(writer.finished(choice), ignored_header(body))


async def read_question(
    body: ResponsesRequest, context: ServerContext
) -> tuple[tuple[int, ...], SamplingParams]:
    """The prompt's tokens and the sampling parameters, as a chat has them."""
    try:
        chat = body.to_chat()
        question = await read_chat_question(chat, context)
        return question.prompt, question.sampling
    except InvalidRequestError as exc:
        # The chat endpoint knows them by other names.
        theirs = exc.param or ""
        for name, own in OWN_NAMES.items():
            if theirs == name or theirs.startswith(f"{name}["):
                exc.param = own + theirs.removeprefix(name)
                exc.args = (str(exc).replace(name, own),)
        raise


class ResponseWriter:
    """Spells the response object of one request."""

    def __init__(
        self,
        body: ResponsesRequest,
        head: AnswerHead,
        sampling: SamplingParams,
        generation: Generation,
    ) -> None:
        self.item_id = head.id.replace("resp", "msg", 1)
        self._body = body
        self._head = head
        self._sampling = sampling
        self._generation = generation

    def response(self, status: Status, **fields: Any) -> Response:
        """The object, as far as the answer has come."""
        body, head = self._body, self._head
        return Response(
            id=head.id,
            created_at=head.created,
            status=status,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=head.model,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=self._sampling.temperature,
            top_logprobs=body.top_logprobs or 0,
            top_p=self._sampling.top_p,
            truncation=body.truncation or "disabled",
            user=body.user,
            **fields,
        )

    def finished(self, choice: Choice) -> Response:
        """The object of a whole answer."""
        usage = self._generation.usage()
        status = status_of(choice)
        return self.response(
            status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            output=(self.message(choice),),
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            ),
        )

    def message(self, choice: Choice) -> OutputMessage:
        """The one message of an answer."""
        part = self.part(choice)
        return OutputMessage(id=self.item_id, status=status_of(choice), content=(part,))

    def part(self, choice: Choice) -> OutputText:
        """The one part of that message."""
        return OutputText(text=choice.text, logprobs=self.logprobs(choice.logprobs))

    def logprobs(self, positions: list[PositionLogprobs]) -> list[ChatTokenLogprob]:
        """The logprobs of some tokens, where they are wanted."""
        if not self._body.wants_logprobs:
            return []
        return chat_logprobs(positions, as_ids=False).content


def status_of(choice: Choice) -> Status:
    """Whether an answer came to its end, or was cut at the limit."""
    return "incomplete" if choice.finish_reason is FinishReason.LENGTH else "completed"


class ResponseStream(StreamEncoder):
    """Spells a stream of typed events, which are numbered; see `StreamEncoder`.

    The last event is `response.completed`, `.incomplete` or `.failed`; there is no `[DONE]`.
    """

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer
        self._choice = Choice()
        self._num_events = 0
        self._held: list[PositionLogprobs] = []

    def opening(self) -> bytes:
        writer = self._writer
        response = writer.response("in_progress")
        item = OutputMessage(id=writer.item_id, status="in_progress", content=())
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._part_event("response.content_part.added", part=OutputText(text=""))
        )

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        self._choice.add(output)
        self._held.extend(output.logprobs or ())
        if not (output.text or (output.finished and self._held)):
            return b""
        logprobs = self._writer.logprobs(self._held)
        self._held.clear()
        return self._part_event("response.output_text.delta", delta=output.text, logprobs=logprobs)

    def closing(self) -> bytes:
        writer, choice = self._writer, self._choice
        part = writer.part(choice)
        return (
            self._part_event("response.output_text.done", text=choice.text, logprobs=part.logprobs)
            + self._part_event("response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=0, item=writer.message(choice))
            + self._event(f"response.{status_of(choice)}", response=writer.finished(choice))
        )

    def failure(self, error: ErrorBody) -> bytes:
        response = self._writer.response("failed", error=ResponseError(error.message))
        return self._event("response.failed", response=response)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        """An event about the one part of the one message."""
        place = {"item_id": self._writer.item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = ResponseEvent(type=kind, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encoder.encode(data) + b"\n\n"
