"""The application: routes, middleware and error handlers around one engine."""

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.errors import DiJiangError, InvalidRequestError
from dijiang_runtime.grammar_check import GrammarChecker
from server.api_keys import ApiKeys
from server.config import ServerConfig
from server.context import ServerContext
from server.errors import error_response, http_error_response
from server.key_limit import KeyLimitMiddleware
from server.key_places import LocalKeyPlaces
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.middleware import AuthMiddleware, LimitsMiddleware, RequestMiddleware, record_of
from server.routes import (
    chat,
    completions,
    embeddings,
    health,
    metrics,
    models,
    openapi,
    playground,
    responses,
    tokens,
)
from server.served_model import ServedModel
from server.siblings import Siblings
from server.version import VERSION

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    models.router,
    tokens.router,
    health.router,
    metrics.router,
    openapi.router,
    playground.router,
)


PROBE_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""What the port for probes answers; nothing on it needs a key."""


def create_app(
    engine: EngineClient, config: ServerConfig, siblings: Siblings | None = None
) -> FastAPI:
    """The ASGI application that serves `engine`. Starts nothing: the engine may still be loading.

    Args:
        siblings: What it shares with the apps of other processes, if there are any.

    Raises:
        ModelLoadError: the model folder's tokenizer or template is not usable.
    """
    app = FastAPI(
        title="DiJiang", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    routers = [r for r in ROUTERS if config.playground or r is not playground.router]
    for router in routers:
        app.include_router(router)
    paths = [
        route.path for router in routers for route in router.routes if isinstance(route, Route)
    ]

    model = ServedModel.load(
        config.model, config.model_names, tool_call_parser=config.tool_call_parser
    )
    metrics = Metrics(
        model.names[0],
        version=VERSION,
        vllm_names=config.vllm_metrics,
        paths=paths,
        share=siblings.metrics if siblings else None,
    )
    context = ServerContext(
        config=config,
        engine=engine,
        model=model,
        metrics=metrics,
        lifecycle=Lifecycle(metrics.deadline_exceeded.inc),
        keys=ApiKeys(config),
        grammars=GrammarChecker(
            config.model,
            timeout_seconds=config.grammar_timeout_seconds,
            max_bytes=config.max_grammar_bytes,
        ),
        started_at=siblings.started_at if siblings else int(time.time()),
    )
    context.metrics.watch_engine(engine)
    app.state.context = context

    app.add_exception_handler(DiJiangError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _answer_bad_url)
    # The last one added is the outermost.
    limit = config.max_requests_per_key
    app.add_middleware(
        KeyLimitMiddleware,
        limit=limit,
        places=siblings.key_places if siblings else LocalKeyPlaces(limit),
        metrics=context.metrics,
    )
    app.add_middleware(AuthMiddleware, keys=context.keys)
    app.add_middleware(LimitsMiddleware, max_body_bytes=config.max_body_bytes)
    app.add_middleware(RequestMiddleware, metrics=context.metrics, access_log=config.access_log)
    return app


def create_probe_app(app: FastAPI) -> FastAPI:
    """The application of the port for probes and metrics: those of `app`, which needs no key."""
    probes = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    context: ServerContext = app.state.context
    probes.state.context = context
    for router in (health.router, metrics.router):
        probes.routes.extend(
            route
            for route in router.routes
            if isinstance(route, Route) and route.path in PROBE_PATHS
        )
    probes.add_exception_handler(HTTPException, _answer_http_error)  # type: ignore[arg-type]
    config = context.config
    probes.add_middleware(LimitsMiddleware, max_body_bytes=config.max_body_bytes)
    probes.add_middleware(RequestMiddleware, metrics=context.metrics, access_log=config.access_log)
    return probes


async def _answer_error(http: Request, exc: Exception) -> Response:
    return error_response(exc, record_of(http.scope).request_id)


async def _answer_http_error(http: Request, exc: HTTPException) -> Response:
    return http_error_response(exc.status_code, exc.headers)


async def _answer_bad_url(http: Request, exc: Exception) -> Response:
    return await _answer_error(http, InvalidRequestError("A parameter of the URL is not valid."))
