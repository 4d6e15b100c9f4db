"""The answers of `/v1/responses`: the object, and the events of a stream."""

import time
from typing import Any, Literal

import msgspec

from dijiang_runtime.request import FinishReason, PositionLogprobs, RequestOutput
from server.choices import Choice
from server.errors import ErrorBody
from server.generation import Generation
from server.protocol.logprobs import ChatTokenLogprob, chat_logprobs
from server.protocol.response_objects import (
    FunctionCall,
    IncompleteDetails,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    Status,
    chosen_tool,
    text_form,
    tool_objects,
)
from server.protocol.responses import ResponsesRequest
from server.routes.chat import Question
from server.routes.common import AnswerHead
from server.streaming import StreamEncoder
from server.tool_calls.items import CallItem, Item, ItemReader

_encoder = msgspec.json.Encoder()


class ResponseWriter:
    """Spells the response object of one request."""

    def __init__(
        self,
        body: ResponsesRequest,
        head: AnswerHead,
        question: Question,
        generation: Generation,
    ) -> None:
        self._body = body
        self._head = head
        self._question = question
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
            temperature=self._question.sampling.temperature,
            text=text_form(body.text),
            tool_choice=chosen_tool(body.tool_choice),
            tools=tool_objects(body.tools),
            top_logprobs=body.top_logprobs or 0,
            top_p=self._question.sampling.top_p,
            truncation=body.truncation or "disabled",
            user=body.user,
            **fields,
        )

    def whole(self, choice: Choice) -> Response:
        """The object of an answer that came at once."""
        reader = self.reader()
        reader.add(choice.text, is_last=True)
        return self.finished(choice, reader)

    def reader(self) -> ItemReader:
        """What takes the answer apart."""
        return ItemReader(self._question.use)

    def finished(self, choice: Choice, reader: ItemReader) -> Response:
        """The object of an answer that is complete."""
        usage = self._generation.usage()
        status = status_of(choice)
        return self.response(
            status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            output=self.output(choice, reader),
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            ),
        )

    def output(self, choice: Choice, reader: ItemReader) -> tuple[OutputItem, ...]:
        """All items of an answer that is complete. Only the last may have been cut."""
        statuses: list[ItemStatus] = ["completed"] * (len(reader.items) - 1)
        statuses.append(last_status(choice, reader))
        pairs = zip(reader.items, statuses, strict=True)
        return tuple(
            self.item(i, item, status, choice.logprobs) for i, (item, status) in enumerate(pairs)
        )

    def item(
        self, index: int, item: Item, status: ItemStatus, positions: list[PositionLogprobs]
    ) -> OutputItem:
        """One item: empty while it is in progress, or complete."""
        item_id = self.item_id(index, item)
        if isinstance(item, CallItem):
            return FunctionCall(
                id=item_id,
                call_id=item.call_id,
                name=item.name,
                arguments="" if status == "in_progress" else item.text,
                status=status,
            )
        content = () if status == "in_progress" else (self.part(item, positions),)
        return OutputMessage(id=item_id, status=status, content=content)

    def item_id(self, index: int, item: Item) -> str:
        kind = "fc" if isinstance(item, CallItem) else "msg"
        return self._head.id.replace("resp", kind, 1) + (f"-{index}" if index else "")

    def part(self, item: Item, positions: list[PositionLogprobs]) -> OutputText:
        """The one part of a message. Logprobs are wanted only where there are no other items."""
        return OutputText(text=item.text, logprobs=self.logprobs(positions))

    def logprobs(self, positions: list[PositionLogprobs]) -> list[ChatTokenLogprob]:
        """The logprobs of some tokens, where they are wanted."""
        if not self._body.wants_logprobs:
            return []
        return chat_logprobs(positions, as_ids=False).content


def status_of(choice: Choice) -> Literal["completed", "incomplete"]:
    """Whether an answer came to its end, or was cut at the limit."""
    return "incomplete" if choice.finish_reason is FinishReason.LENGTH else "completed"


def last_status(choice: Choice, reader: ItemReader) -> ItemStatus:
    """The same of the last item. A call may also be cut by the model, which ends the text."""
    is_cut = choice.finish_reason is FinishReason.LENGTH or reader.is_inside_call
    return "incomplete" if is_cut else "completed"


class ResponseStream(StreamEncoder):
    """Spells a stream of typed events, which are numbered; see `StreamEncoder`.

    Each item is opened, filled and closed before the next one. The last event is
    `response.completed`, `.incomplete` or `.failed`; there is no `[DONE]`.
    """

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer
        self._choice = Choice()
        self._reader = writer.reader()
        self._num_open = 0
        """Items that were opened; all but the last are closed."""
        self._num_events = 0
        self._held: list[PositionLogprobs] = []

    def opening(self) -> bytes:
        response = self._writer.response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        self._choice.add(output)
        self._held.extend(output.logprobs or ())
        news = self._reader.add(output.text, is_last=output.finished)
        if output.finished and self._held and not news:
            news = [(len(self._reader.items) - 1, "")]
        return b"".join([self._grow(index, text) for index, text in news])

    def closing(self) -> bytes:
        writer, choice = self._writer, self._choice
        kind = f"response.{status_of(choice)}"
        response = writer.finished(choice, self._reader)
        end = self._close(last_status(choice, self._reader))
        return end + self._event(kind, response=response)

    def failure(self, error: ErrorBody) -> bytes:
        response = self._writer.response("failed", error=ResponseError(error.message))
        return self._event("response.failed", response=response)

    def _grow(self, index: int, text: str) -> bytes:
        """Tell what is new in an item, which may be the item itself."""
        data = b""
        if index == self._num_open:
            data = (self._close() if index else b"") + self._open(index)
        if isinstance(self._reader.items[index], CallItem):
            if not text:
                return data
            kind = "response.function_call_arguments.delta"
            return data + self._item_event(kind, delta=text)
        if not (text or self._held):
            return data
        logprobs = self._writer.logprobs(self._held)
        self._held.clear()
        return data + self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)

    def _open(self, index: int) -> bytes:
        self._num_open = index + 1
        item = self._reader.items[index]
        told = self._writer.item(index, item, "in_progress", [])
        data = self._event("response.output_item.added", output_index=index, item=told)
        if isinstance(item, CallItem):
            return data
        return data + self._part_event("response.content_part.added", part=OutputText(text=""))

    def _close(self, status: ItemStatus = "completed") -> bytes:
        """End the item that is open."""
        index = self._num_open - 1
        item = self._reader.items[index]
        told = self._writer.item(index, item, status, self._choice.logprobs)
        if isinstance(item, CallItem):
            kind = "response.function_call_arguments.done"
            data = self._item_event(kind, name=item.name, arguments=item.text)
        else:
            part = self._writer.part(item, self._choice.logprobs)
            kind = "response.output_text.done"
            data = self._part_event(kind, text=part.text, logprobs=part.logprobs)
            data += self._part_event("response.content_part.done", part=part)
        return data + self._event("response.output_item.done", output_index=index, item=told)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        """An event about the one part of the message that is open."""
        return self._item_event(kind, content_index=0, **fields)

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        """An event about the item that is open."""
        index = self._num_open - 1
        item_id = self._writer.item_id(index, self._reader.items[index])
        return self._event(kind, item_id=item_id, output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = ResponseEvent(type=kind, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encoder.encode(data) + b"\n\n"
