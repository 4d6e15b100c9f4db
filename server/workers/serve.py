"""The main process of a server with several workers: it listens, and has the engine."""

import asyncio
import logging
from collections.abc import Coroutine

from dijiang_runtime.engine.client import EngineHost, EngineProcess
from server.config import ServerConfig
from server.garbage import collect_when_quiet
from server.http_server import on_signals
from server.listening import listen, listen_for_probes, url_of
from server.starting import start_engine
from server.tls import tls_context
from server.workers.messages import FOR_API, FOR_PROBES
from server.workers.metrics_folder import MetricsFolder
from server.workers.pool import WorkerPool

logger = logging.getLogger(__name__)


async def serve_with_workers(engine: EngineProcess, config: ServerConfig) -> int:
    """Serve an engine that has not been started yet through `config.api_workers` processes.

    Raises:
        ConfigError: the address cannot be listened on, or the certificate not be used.
        ModelLoadError: the model folder's tokenizer or template is not usable.
    """
    tls = tls_context(config)
    listener, probe_listener = listen(config), listen_for_probes(config)
    listeners = {FOR_API: listener}
    if probe_listener is not None:
        listeners[FOR_PROBES] = probe_listener
    host = EngineHost(engine)
    with MetricsFolder() as folder:
        pool = WorkerPool(host, config, folder, listeners)
        working = asyncio.create_task(pool.run())
        start = start_engine(engine, url_of(listener, tls), config, beside=pool.wait_up())
        running = asyncio.create_task(_run_engine(engine, host, start))
        try:
            with on_signals(pool.stop, pool.reload):
                await asyncio.wait({working, running}, return_when=asyncio.FIRST_COMPLETED)
                if running.done() and (failure := running.exception()):
                    logger.error("The engine cannot go on: %s", failure)
                    pool.fail()
                await working
        finally:
            for task in (working, running):
                task.cancel()
            await asyncio.gather(working, running, return_exceptions=True)
            await engine.stop()
    return pool.exit_status


async def _run_engine(
    engine: EngineProcess, host: EngineHost, start: Coroutine[None, None, None]
) -> None:
    """Start the engine and stay with it. Ends only by raising: the engine is past help."""
    await start
    collecting = asyncio.create_task(collect_when_quiet(lambda: host.num_running))
    try:
        await engine.wait_failed()
    finally:
        collecting.cancel()
