"""Run a server until a signal or a failure ends it.

The socket listens before the model is loaded, so that probes are answered from the first moment.
On SIGHUP it reads its API keys and its certificate again. On SIGTERM or SIGINT it drains: it turns
unready, refuses new work, lets what runs finish within `drain_seconds`, ends the rest with an
error, and leaves with status 0. A second signal leaves at once.

One process serves all connections, or `--api-workers` of them do: `server.workers`.
"""

import asyncio
from collections.abc import Awaitable, Callable

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.client import EngineClient, EngineProcess
from server.config import ServerConfig
from server.listening import listen, listen_for_probes, url_of
from server.starting import configure_logging, loop_factory, start_engine
from server.tls import tls_context


def run_server(config: ServerConfig, engine_config: EngineConfig) -> int:
    """Serve a model until told to stop. Returns the exit status of the process.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelLoadError: the model folder's tokenizer or template is not usable.
    """
    configure_logging(config.log_level)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        engine = EngineProcess(engine_config)
        if config.api_workers > 1:
            from server.workers.serve import serve_with_workers

            return runner.run(serve_with_workers(engine, config))
        return runner.run(serve(engine, config, begin=engine.begin))


async def serve(
    engine: EngineClient,
    config: ServerConfig,
    *,
    begin: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Serve an engine that has not been started yet, and stop it in the end.

    Args:
        begin: Lets the engine begin to load, where it can do that by itself.
    """
    tls = tls_context(config)
    listener, probe_listener = listen(config), listen_for_probes(config)
    try:
        # It loads while this process imports what answers requests: that takes half a second.
        if begin is not None:
            await begin()
        from server.api_process import ApiProcess

        api = ApiProcess(engine, config, tls)
    except BaseException:
        await engine.stop()
        raise
    url = url_of(listener, tls)
    return await api.run(start_engine(engine, url, config), listener, probe_listener)
