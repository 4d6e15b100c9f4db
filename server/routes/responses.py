"""`POST /v1/responses`: answer a text or a conversation, in OpenAI's newer form."""

import re

from fastapi import APIRouter, Request
from starlette.responses import Response

from dijiang_runtime.errors import InvalidRequestError
from server.context import ContextDep, ServerContext
from server.generation import Generation, make_requests
from server.protocol.responses import OWN_NAMES, ResponsesRequest
from server.routes.chat import Question
from server.routes.chat import read_question as read_chat_question
from server.routes.common import admit, collect, ignored_header, json_response, read_request
from server.routes.response_writer import ResponseStream, ResponseWriter
from server.streaming import EventStream

router = APIRouter()


@router.post("/v1/responses")
async def create_response(http: Request, context: ContextDep) -> Response:
    body = await read_request(http, context, ResponsesRequest)
    head = admit(context, body, "resp")
    question = await read_question(body, context)
    requests = make_requests(context, head.id, [(question.prompt, question.sampling)], body)
    generation = await Generation.begin(context, requests, body)
    writer = ResponseWriter(body, head, question, generation)
    if body.stream:
        return EventStream(context, generation, ResponseStream(writer), ignored_header(body))
    [choice] = await collect(http, context, generation)
    return json_response(writer.whole(choice), ignored_header(body))


async def read_question(body: ResponsesRequest, context: ServerContext) -> Question:
    """What the same chat would ask."""
    chat = body.to_chat()
    try:
        chat.check_tools()
        return await read_chat_question(chat, context)
    except InvalidRequestError as exc:
        # The chat endpoint knows them by other names.
        for name, own in OWN_NAMES.items():
            exc.param = exc.param and re.sub(name, own, exc.param)
            exc.args = (re.sub(name, own, str(exc)),)
        raise
