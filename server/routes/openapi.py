"""`GET /openapi.json`: this API, for programs that read such documents."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.context import ContextDep
from server.openapi import build_document
from server.version import VERSION

router = APIRouter()


@router.get("/openapi.json")
async def openapi(context: ContextDep) -> Response:
    config = context.config
    document = build_document(
        VERSION, has_playground=config.playground, needs_key=bool(config.api_key_hashes)
    )
    return JSONResponse(document)
