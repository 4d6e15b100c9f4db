"""Probes and the version. Only these answer without an API key, `/version` excepted."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.context import ContextDep
from server.version import VERSION

router = APIRouter()


@router.get("/livez")
async def livez() -> Response:
    """200 while the event loop runs."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz")
async def readyz(context: ContextDep) -> Response:
    """200 while new requests are welcome: the model is loaded and warm, nothing is stopping."""
    if context.lifecycle.is_draining:
        return JSONResponse({"status": "draining"}, 503)
    if not context.engine.is_ready:
        status = "restarting" if context.engine.num_restarts else "loading"
        return JSONResponse({"status": status}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/health")
async def health(context: ContextDep) -> Response:
    """As in vLLM: an empty 200 while the engine lives, 503 otherwise."""
    return Response(status_code=200 if context.engine.is_ready else 503)


@router.get("/version")
async def version() -> Response:
    return JSONResponse({"version": VERSION})
