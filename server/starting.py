"""What happens when a server starts, in whatever processes it consists of."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rich.console import Console

from dijiang_runtime.engine.client import EngineClient
from server.config import ServerConfig
from server.summary import print_summary


async def start_engine(
    engine: EngineClient,
    url: str,
    config: ServerConfig,
    *,
    beside: Awaitable[None] | None = None,
) -> None:
    """Start the engine, and tell the operator. Raises as `EngineClient.start` does.

    Args:
        beside: What else must be over before the server is ready.
    """
    console = Console(stderr=True)
    console.print(f"Listening on {url}, loading {config.model_names[0]}.", highlight=False)
    await engine.start()
    if beside is not None:
        await beside
    print_summary(console, url, engine.info, config)


def configure_logging(level: str) -> None:
    """Log to standard error, one line an event."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # Its own lines about starting and stopping repeat ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
