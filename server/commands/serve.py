"""`dijiang serve`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from dijiang_runtime.config import EngineConfig
from server.commands.common import ModelArgument, model_folder, or_demo_model
from server.commands.options import with_config_flags
from server.config import ServerConfig, merge_options
from server.config_file import with_config_file


@with_config_flags(ServerConfig, EngineConfig)
def serve(model: ModelArgument = None, *, flags: dict[str, Any]) -> None:
    """Serve a model through the OpenAI API, with streaming and metrics.

    Every option can also be set as a variable: --max-slots as DIJIANG_MAX_SLOTS; and in a file,
    --config: max-slots. A flag wins over a variable, and a variable over the file. API keys come
    from --api-key-file or from DIJIANG_API_KEYS, separated by commas.

    Examples:

        dijiang serve

        dijiang serve ./pythia-410m-dijiang --port 9000 --max-slots 64

        dijiang serve ./model --host 0.0.0.0 --api-key-file keys.txt
    """
    from server.run import run_server

    file = flags.get("config") or os.environ.get("DIJIANG_CONFIG")
    environ: Mapping[str, str] = with_config_file(
        os.environ, Path(file) if file else None, (ServerConfig, EngineConfig)
    )
    if model is None:
        environ = or_demo_model(environ)
    else:
        flags["model"] = model_folder(model)
    config = ServerConfig.resolve(flags, environ)
    engine_config = merge_options(EngineConfig, flags, environ)
    raise typer.Exit(run_server(config, engine_config))
