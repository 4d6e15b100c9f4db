"""`GET /metrics`, for Prometheus."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.context import ContextDep

router = APIRouter()


@router.get("/metrics")
async def metrics(http: Request, context: ContextDep) -> Response:
    body, content_type = context.metrics.render(http.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
