"""What every route needs, in one value that belongs to the app."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from dijiang_runtime.engine.client import EngineClient
from dijiang_runtime.grammar_check import GrammarChecker
from server.api_keys import ApiKeys
from server.config import ServerConfig
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The parts of one server. There is no other state."""

    config: ServerConfig
    engine: EngineClient
    model: ServedModel
    metrics: Metrics
    lifecycle: Lifecycle
    keys: ApiKeys
    grammars: GrammarChecker
    started_at: int
    """Unix time in seconds."""


async def _context(request: Request) -> ServerContext:
    # Not a plain function: FastAPI would run it in a thread, for every request.
    context: ServerContext = request.app.state.context
    return context


ContextDep = Annotated[ServerContext, Depends(_context)]
