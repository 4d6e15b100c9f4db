"""Probes, which need no API key; the load and the version, which do."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.context import ContextDep
from server.protocol.status import Load
from server.routes.common import json_response
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


@router.get("/load")
async def load(context: ContextDep) -> Response:
    """How much runs and waits, for whoever shares requests out."""
    stats = context.engine.stats
    answer = Load(
        server_load=stats.running + stats.waiting,
        running=stats.running,
        waiting=stats.waiting,
        slots=stats.slots_total,
        slots_free=stats.slots_total - stats.slots_used,
    )
    return json_response(answer, {})


@router.get("/version")
async def version() -> Response:
    return JSONResponse({"version": VERSION})
