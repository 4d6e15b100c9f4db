"""`/v1/embeddings`."""

import base64
import sys
from array import array
from typing import Literal

import msgspec

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError
from server.protocol.completions import Prompts, list_prompts
from server.protocol.sampling import EngineRequest

MAX_INPUTS = 2048
"""As in the OpenAI API."""


class EmbeddingRequest(EngineRequest):
    """Say what texts are about, in numbers."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    """Default: float. Base64 is of little-endian float32."""
    dimensions: int | None = None
    """Only the number that the model has."""
    add_special_tokens: bool | None = None
    """Put BOS and the like where the model expects them. Default: true."""

    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, of which none is empty."""
        inputs = list_prompts(self.input, "input")
        if len(inputs) > MAX_INPUTS:
            raise InvalidRequestError(f"input must hold at most {MAX_INPUTS} texts.", param="input")
        return inputs

    def check_dimensions(self, hidden_size: int) -> None:
        """Raise unless the embeddings wanted are as long as the model's are."""
        if self.dimensions not in (None, hidden_size):
            raise UnsupportedParameterError(
                f"dimensions must be {hidden_size}: this model's embeddings cannot be shortened.",
                param="dimensions",
            )

    def encode(self, embedding: bytes) -> list[float] | str:
        """Little-endian float32 values as the client wants them."""
        if self.encoding_format == "base64":
            return base64.b64encode(embedding).decode("ascii")
        values = array("f", embedding)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tolist()


class EmbeddingObject(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
