"""`GET /v1/models`: what is served. One model, under each of its names."""

from fastapi import APIRouter
from starlette.responses import Response

from server.context import ContextDep, ServerContext
from server.protocol.models import ModelCard, ModelList
from server.routes.common import json_response

router = APIRouter()


@router.get("/v1/models")
async def list_models(context: ContextDep) -> Response:
    cards = [model_card(context, name) for name in context.model.names]
    return json_response(ModelList(data=cards), {})


@router.get("/v1/models/{name:path}")
async def get_model(name: str, context: ContextDep) -> Response:
    return json_response(model_card(context, context.model.resolve_name(name)), {})


def model_card(context: ServerContext, name: str) -> ModelCard:
    engine = context.engine
    return ModelCard(
        id=name,
        created=context.started_at,
        root=context.model.names[0],
        max_model_len=engine.info.max_model_len if engine.is_ready else None,
    )
