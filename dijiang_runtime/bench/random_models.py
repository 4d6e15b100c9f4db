"""Models with random weights, ready for the engine: speed does not depend on the weights.

For the compiled kernels every matrix is packed as soon as it is drawn, so that what a model takes
while it is made is little more than what it takes when it is served.
"""

import dataclasses
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import random_model
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.packed_folder import empty_packed
from dijiang_runtime.models.serving import (
    DtypeChoice,
    ServingModel,
    packing_of,
    serve_in,
    serve_packed,
)
from dijiang_runtime.ops import cpu
from dijiang_runtime.ops.cpu.library import Context
from dijiang_runtime.ops.cpu.packed import WeightFormat, pack

_STD = 0.02
"""Of matrices and embeddings, as GPT-NeoX initialises them."""


def random_serving_model(
    config: ModelConfig, device: torch.device, dtype: DtypeChoice
) -> ServingModel:
    """Make what `serve_in` makes of a random model, without that model where matrices are packed.

    Raises:
        ModelLoadError: not in this dtype there.
    """
    weight_format = packing_of(device, dtype)
    if weight_format is None:
        return serve_in(random_model(config), device, dtype)[0]
    context = cpu.context()
    return serve_packed(random_packed_model(config, weight_format, context), context)


def random_packed_model(
    config: ModelConfig, weight_format: WeightFormat, context: Context | None = None
) -> Decoder:
    """A decoder whose matrices are packed, and of which no two were ever in float32 at once."""
    model = empty_packed(config, weight_format, context)
    # All storage is taken beforehand: what is made between matrices that stay would leave holes,
    # too small for the next one, as large together as the model in float32.
    storage = {n: torch.empty_like(t, device="cpu") for n, t in model.state_dict().items()}
    model.load_state_dict(storage, strict=True, assign=True)
    for name, tensor in random_packed_weights(config, weight_format):
        storage[name].copy_(tensor)
    return model.eval().requires_grad_(False)


def random_packed_weights(
    config: ModelConfig, weight_format: WeightFormat
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a packed decoder by its name, drawn and packed one matrix at a time."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(_STD)

    model = empty_packed(config, weight_format)
    embedding = draw(*model.embed_tokens.weight.shape)
    yield "embed_tokens.weight", embedding
    missing = model.state_dict().keys() - {"embed_tokens.weight"}
    for path, module in model.named_modules():
        if not isinstance(module, PackedLinear):
            continue
        is_tied = path == "lm_head" and config.tie_word_embeddings
        weight = embedding if is_tied else draw(module.out_features, module.in_features)
        bias = None if module.bias is None else torch.zeros(module.out_features)
        matrix = pack(weight, bias, weight_format)
        for name, tensor in PackedLinear(matrix, None).state_dict().items():
            missing.remove(f"{path}.{name}")
            yield f"{path}.{name}", tensor
    # What is left is made by a model of one layer and one token: all layers have the same.
    one = Decoder(dataclasses.replace(config, num_layers=1, vocab_size=1)).state_dict()
    for name in sorted(missing):
        yield name, one[re.sub(r"^layers\.\d+\.", "layers.0.", name)].clone()
