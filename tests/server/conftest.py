"""A model folder without weights, a fake engine, and a client without sockets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import dijiang_runtime.tokenizer
from server.app import create_app
from server.config import ServerConfig
from tests.server.fake_engine import FakeEngine

ServedApp = Callable[..., FastAPI]
ClientFor = Callable[..., httpx.AsyncClient]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer: one token a byte, and three special ones."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> dijiang_runtime.tokenizer.Tokenizer:
    return dijiang_runtime.tokenizer.Tokenizer.load(model_folder)


@pytest.fixture
def engine(tokenizer: dijiang_runtime.tokenizer.Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def app_for(engine: FakeEngine, model_folder: Path) -> ServedApp:
    """Makes an app around the fake engine; options are those of `ServerConfig`."""

    def make(**options: Any) -> FastAPI:
        return create_app(engine, ServerConfig(**{"model": model_folder, **options}))

    return make


@pytest.fixture
def client_for(app_for: ServedApp) -> ClientFor:
    """Makes a client of an app of its own, or of the one given."""

    def make(app: FastAPI | None = None, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app or app_for(**options), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server")

    return make


@pytest.fixture
def client(client_for: ClientFor) -> httpx.AsyncClient:
    return client_for()
