"""The server as a Ray Serve application: the same app, one engine process a replica.

    serve run deploy/ray/serve.yaml

Every option of `dijiang serve` is an environment variable of the replicas (`runtime_env` in
serve.yaml). Ray's proxy listens, so the options that concern a socket of our own are not used.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI
from ray import serve

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.client import EngineProcess
from server.app import create_app
from server.commands.common import or_demo_model
from server.config import ServerConfig, merge_options
from server.starting import configure_logging


def build_app() -> FastAPI:
    """The ASGI app of one replica, which starts its engine before the first request.

    Raises:
        ConfigError: an option is wrong, or there is neither an API key nor DIJIANG_INSECURE.
    """
    config, engine_config = resolve(os.environ)
    configure_logging(config.log_level)
    engine = EngineProcess(engine_config)
    app = create_app(engine, config)

    @contextlib.asynccontextmanager
    async def run_engine(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        app.state.failed = asyncio.create_task(engine.wait_failed())
        try:
            yield
        finally:
            # Ray has let the last requests finish, for as long as it grants.
            app.state.context.lifecycle.begin_drain()
            app.state.failed.cancel()
            await engine.stop()

    app.router.lifespan_context = run_engine
    return app


def resolve(environ: Mapping[str, str]) -> tuple[ServerConfig, EngineConfig]:
    """Options from the environment. Ray may listen anywhere, so keys are asked for as if it did."""
    environ = or_demo_model(environ)
    config = ServerConfig.resolve({"host": "0.0.0.0"}, environ)
    return config, merge_options(EngineConfig, {}, environ)


@serve.deployment
@serve.ingress(build_app)
class DiJiang:
    """One replica. Ray replaces it when its health check raises."""

    app: FastAPI

    async def check_health(self) -> None:
        """Raise when the engine is past help; one that restarts is not."""
        failed = self.app.state.failed
        if failed.done():
            failed.result()
            raise RuntimeError("The engine has stopped.")


application = DiJiang.bind()
