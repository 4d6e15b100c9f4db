"""The engine and the model. Knows nothing of HTTP.

    from dijiang_runtime import Engine, EngineConfig, SamplingParams

    engine = Engine.from_config(EngineConfig(model=Path("my-model")))
    [output] = engine.generate(["Once upon a time"], SamplingParams(max_tokens=50))

Names are imported when they are first used, so that importing the package costs nothing. In a
program that uses transformers, `AutoModelForCausalLM.from_pretrained` loads our folders as well.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dijiang_runtime import import_hook

if TYPE_CHECKING:
    from dijiang_runtime.config import EngineConfig
    from dijiang_runtime.engine.client import (
        EngineClient,
        EngineInfo,
        EngineProcess,
        EngineStats,
        InProcessEngine,
        RequestStream,
    )
    from dijiang_runtime.engine.engine import Engine
    from dijiang_runtime.models.config import ModelConfig
    from dijiang_runtime.models.decoder import Decoder
    from dijiang_runtime.models.loader import load_model
    from dijiang_runtime.request import FinishReason, Request, RequestOutput, SamplingParams
    from dijiang_runtime.tokenizer import Tokenizer

_HOMES = {
    "Decoder": "models.decoder",
    "Engine": "engine.engine",
    "EngineClient": "engine.client",
    "EngineConfig": "config",
    "EngineInfo": "engine.client",
    "EngineProcess": "engine.client",
    "EngineStats": "engine.client",
    "FinishReason": "request",
    "InProcessEngine": "engine.client",
    "ModelConfig": "models.config",
    "Request": "request",
    "RequestOutput": "request",
    "RequestStream": "engine.client",
    "SamplingParams": "request",
    "Tokenizer": "tokenizer",
    "load_model": "models.loader",
}

__all__ = [
    "Decoder",
    "Engine",
    "EngineClient",
    "EngineConfig",
    "EngineInfo",
    "EngineProcess",
    "EngineStats",
    "FinishReason",
    "InProcessEngine",
    "ModelConfig",
    "Request",
    "RequestOutput",
    "RequestStream",
    "SamplingParams",
    "Tokenizer",
    "load_model",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


import_hook.install()
