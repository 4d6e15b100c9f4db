"""Decoders whose matrices are packed for the compiled kernels."""

from collections.abc import Iterator

from torch import Tensor, nn

from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.ops.cpu.library import Context
from dijiang_runtime.ops.cpu.packed import PackedMatrix, WeightFormat, multiply, pack
from dijiang_runtime.ops.linear import Tiles


class PackedLinear(nn.Module):
    """A linear layer over a packed matrix. For inference on the CPU; its rows need no tiles."""

    panels: Tensor
    scale: Tensor | None
    column_sum: Tensor | None
    bias: Tensor | None

    def __init__(self, matrix: PackedMatrix, context: Context | None) -> None:
        super().__init__()
        self.context = context
        self.in_features = matrix.in_features
        self.out_features = matrix.out_features
        for name in ("panels", "scale", "column_sum", "bias"):
            self.register_buffer(name, getattr(matrix, name))

    @property
    def matrix(self) -> PackedMatrix:
        return PackedMatrix(
            panels=self.panels,
            scale=self.scale,
            column_sum=self.column_sum,
            bias=self.bias,
            in_features=self.in_features,
            out_features=self.out_features,
        )

    def forward(self, x: Tensor, tiles: Tiles | None = None) -> Tensor:
        return multiply(x, self.matrix, self.context)


def pack_model(model: Decoder, weight_format: WeightFormat, context: Context) -> Decoder:
    """Replace every linear layer, and a tied vocabulary projection, by a packed one, in place.

    One layer at a time, so that no more than one matrix exists twice.
    """
    for parent, name, linear in list(linear_layers(model)):
        matrix = pack(linear.weight, linear.bias, weight_format)
        setattr(parent, name, PackedLinear(matrix, context))
    if model.config.tie_word_embeddings and not hasattr(model, "lm_head"):
        embedding = model.embed_tokens.weight
        model.add_module("lm_head", PackedLinear(pack(embedding, None, weight_format), context))
    return model


def is_packed(model: Decoder) -> bool:
    """Whether the matrices are packed."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def weight_format_of(model: Decoder) -> str:
    """The format of the matrices, packed or not."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            return str(module.panels.dtype).removeprefix("torch.")
    return str(model.embed_tokens.weight.dtype).removeprefix("torch.")


def num_parameters(model: nn.Module) -> int:
    """Numbers that were trained, whatever the form that they are kept in."""
    is_tied = isinstance(model, Decoder) and model.config.tie_word_embeddings
    count = sum(parameter.numel() for parameter in model.parameters())
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            if name == "lm_head" and is_tied:
                continue  # The embedding once more.
            has_bias = module.bias is not None
            count += module.out_features * (module.in_features + has_bias)
    return count


def weight_bytes(model: Decoder) -> int:
    """Bytes that one decode reads of the weights: all but the embedding table."""
    tensors = (*model.parameters(), *model.buffers())
    total = sum(tensor.nbytes for tensor in tensors)
    if model.config.tie_word_embeddings and not is_packed(model):
        return total  # The table is the vocabulary projection.
    return total - model.embed_tokens.weight.nbytes


def linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer, with its parent and its name there."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child
