"""Model folders whose matrices are packed for the CPU: mapped, and served without a copy.

Safetensors as in any other folder, with the tensors of a `PackedLinear` in place of each matrix.
The metadata of every file's header says so: `dijiang_packed` is the format, `dijiang_layout` the
version of the layout of `ops.cpu.packed`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import empty_model, fill, load_config, load_model, save_config
from dijiang_runtime.models.packed import PackedLinear, linear_layers
from dijiang_runtime.models.shards import DEFAULT_SHARD_BYTES, ShardWriter, TensorSpec
from dijiang_runtime.models.weights import LAYOUT_KEY, PACKED_KEY, TensorSource
from dijiang_runtime.ops.cpu.library import Context
from dijiang_runtime.ops.cpu.packed import WEIGHT_FORMATS, PackedMatrix, WeightFormat, pack

LAYOUT_VERSION = "1"


def packed_format(folder: Path) -> WeightFormat | None:
    """The format of a packed folder; None for any other, or for none.

    Raises:
        ModelLoadError: it is packed in a way that is not known here.
    """
    try:
        metadata = TensorSource(folder).metadata
    except ModelLoadError:
        return None
    if (name := metadata.get(PACKED_KEY)) is None:
        return None
    version = metadata.get(LAYOUT_KEY)
    if name not in WEIGHT_FORMATS or version != LAYOUT_VERSION:
        raise ModelLoadError(
            f"{folder} is packed as {name!r} in layout {version!r}, which this version does not "
            "know. Pack it again from the folder that it was made from: dijiang convert --quantize."
        )
    return name


def mapped_bytes(folder: Path) -> int:
    """Bytes of weights that serving a folder on the CPU maps, rather than copies: 0 unless packed.

    Raises:
        ModelLoadError: as `packed_format`.
    """
    if packed_format(folder) is None:
        return 0
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def load_packed(folder: Path, context: Context | None = None) -> Decoder:
    """Map a packed folder. Its matrices and its embedding table are read when they are first used.

    Whoever packed them has looked for numbers that are not finite; and the engine fails whatever
    request meets one.

    Raises:
        ModelLoadError: it is not a packed folder, or a tensor is missing, superfluous, misshapen or
            of another dtype.
    """
    weight_format = packed_format(folder)
    if weight_format is None:
        raise ModelLoadError(f"{folder} is no packed model folder.")
    source = TensorSource(folder)
    model = empty_packed(load_config(folder), weight_format, context)
    large = frozenset(n for n in source.names if n.endswith((".panels", "embed_tokens.weight")))
    fill(model, _checked(source, model), None, large)
    return model.eval().requires_grad_(False)


def pack_folder(
    folder: Path,
    out: Path,
    weight_format: WeightFormat,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the weights and the config of a model folder to `out`, packed, one matrix at a time.

    What is not a matrix stays as it is stored.

    Raises:
        ModelLoadError: the folder cannot be loaded.
    """
    model = load_model(folder, dtype=None)
    kept = model.state_dict()
    dtypes = {name: tensor.dtype for name, tensor in kept.items()}
    writer = packed_writer(out, model.config, weight_format, dtypes, shard_bytes)
    for path, weight, bias in _matrices(model):
        write_matrix(writer, path, pack(weight, bias, weight_format))
    for name in writer.missing:
        writer.write(name, kept[name])


def packed_writer(
    out: Path,
    config: ModelConfig,
    weight_format: WeightFormat,
    dtypes: Mapping[str, torch.dtype] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> ShardWriter:
    """Write the config and the headers of a packed folder; the tensors are the caller's to write.

    Args:
        dtypes: Of what is not packed. Default: float32.
    """
    model = empty_packed(config, weight_format)
    of_matrices = _names_of_matrices(model)
    specs = {}
    for name, tensor in model.state_dict().items():
        wanted = None if name in of_matrices else (dtypes or {}).get(name)
        specs[name] = TensorSpec(tuple(tensor.shape), wanted or tensor.dtype)
    save_config(config, out)
    metadata = {PACKED_KEY: weight_format, LAYOUT_KEY: LAYOUT_VERSION}
    return ShardWriter(out, specs, shard_bytes=shard_bytes, metadata=metadata)


def write_matrix(writer: ShardWriter, path: str, matrix: PackedMatrix) -> None:
    """Write the tensors of the packed layer of that name."""
    for name, tensor in PackedLinear(matrix, None).state_dict().items():
        writer.write(f"{path}.{name}", tensor)


def empty_packed(
    config: ModelConfig, weight_format: WeightFormat, context: Context | None = None
) -> Decoder:
    """A packed decoder without storage: names, shapes and dtypes."""
    model = empty_model(config)
    for parent, name, linear in list(linear_layers(model)):
        has_bias = linear.bias is not None
        matrix = PackedMatrix.empty(
            linear.in_features, linear.out_features, weight_format, has_bias=has_bias
        )
        setattr(parent, name, PackedLinear(matrix, context))
    if config.tie_word_embeddings:
        rows, columns = model.embed_tokens.weight.shape
        matrix = PackedMatrix.empty(columns, rows, weight_format, has_bias=False)
        model.add_module("lm_head", PackedLinear(matrix, context))
    return model


def _matrices(model: Decoder) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield path, module.weight, module.bias
    if model.config.tie_word_embeddings:
        yield "lm_head", model.embed_tokens.weight, None


def _names_of_matrices(model: Decoder) -> frozenset[str]:
    """The tensors that packed layers consist of."""
    return frozenset(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear)
        for name in module.state_dict()
    )


def _checked(source: TensorSource, model: Decoder) -> Iterator[tuple[str, Tensor]]:
    state = model.state_dict()
    wanted = {name: state[name].dtype for name in _names_of_matrices(model)}
    for name in sorted(source.names):
        tensor = source.get(name)
        if tensor.dtype != wanted.get(name, tensor.dtype):
            raise ModelLoadError(f"{name} holds {tensor.dtype}, not {wanted[name]}.")
        yield name, tensor
