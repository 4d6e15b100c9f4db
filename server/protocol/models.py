"""`/v1/models`."""

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as it is listed."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dijiang"
    root: str
    """The name under which the server lists the model first; the others are aliases of it."""
    max_model_len: int | None
    """Longest prompt plus answer, in tokens; null until the model is loaded."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]
