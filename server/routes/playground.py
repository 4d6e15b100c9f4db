"""`GET /`: the playground. Without a key, because the page itself tells nothing."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from server.playground.page import build_page

router = APIRouter()

PAGE: Final = build_page()


@router.get("/")
async def playground() -> Response:
    return Response(PAGE.body, headers=PAGE.headers)
