"""Packed matrices: weights in the order in which the kernels read them.

N outputs    K inputs    P panels of 64 outputs    E inputs in a group: 1 float32, 2 bfloat16,
4 int8
"""

import ctypes
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dijiang_runtime.ops.cpu.library import FORMATS, Context, MatrixStruct, context

WeightFormat = Literal["float32", "bfloat16", "int8"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

PANEL_COLUMNS = 64
_GROUP = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
_INPUT_MULTIPLE = 4
"""Inputs are padded to this whatever the format."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """y = x Wᵀ + bias, in the format of `panels`. Keeps the arrays that the kernels point to."""

    panels: Tensor  # [P, K / E, 64, E]
    scale: Tensor | None  # int8: what one unit of an output is worth. [64 P], float32
    column_sum: Tensor | None  # int8: sum over the inputs. [64 P], int32
    bias: Tensor | None  # [64 P], float32
    in_features: int
    out_features: int

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, weight_format: WeightFormat, *, has_bias: bool
    ) -> Self:
        """A matrix without storage."""
        dtype: torch.dtype = getattr(torch, weight_format)
        panels = -(-out_features // PANEL_COLUMNS)
        inputs = -(-in_features // _INPUT_MULTIPLE) * _INPUT_MULTIPLE
        group, columns = _GROUP[dtype], panels * PANEL_COLUMNS

        def of(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        is_int8 = dtype == torch.int8
        return cls(
            panels=of(panels, inputs // group, PANEL_COLUMNS, group, dtype=dtype),
            scale=of(columns, dtype=torch.float32) if is_int8 else None,
            column_sum=of(columns, dtype=torch.int32) if is_int8 else None,
            bias=of(columns, dtype=torch.float32) if has_bias else None,
            in_features=in_features,
            out_features=out_features,
        )

    def struct(self) -> MatrixStruct:
        """What the kernels are told. Valid as long as this object is alive."""
        return MatrixStruct(
            panels=self.panels.data_ptr(),
            scale=address(self.scale),
            column_sum=address(self.column_sum),
            bias=address(self.bias),
            groups=self.panels.shape[1],
            columns=self.out_features,
            format=FORMATS[self.panels.dtype],
        )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor lies, or a null pointer."""
    return None if tensor is None else tensor.data_ptr()


def pack(weight: Tensor, bias: Tensor | None, weight_format: WeightFormat) -> PackedMatrix:
    """Pack a weight [N, K] and its bias [N].

    int8 is symmetric and per output: the largest weight of a row becomes 127.
    """
    outputs, inputs = weight.shape
    scale = column_sum = None
    if weight_format == "int8":
        weight = weight.float()
        unit = weight.abs().amax(dim=1) / 127
        weight = (weight / unit.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        scale = pad_columns(unit)
        column_sum = pad_columns(weight.sum(dim=1, dtype=torch.int32))
    else:
        weight = weight.to(getattr(torch, weight_format))
    weight = F.pad(weight, (0, -inputs % _INPUT_MULTIPLE, 0, -outputs % PANEL_COLUMNS))
    groups = weight.unflatten(1, (-1, _GROUP[weight.dtype])).unflatten(0, (-1, PANEL_COLUMNS))
    return PackedMatrix(
        panels=groups.transpose(1, 2).contiguous(),
        scale=scale,
        column_sum=column_sum,
        bias=None if bias is None else pad_columns(bias.float()),
        in_features=inputs,
        out_features=outputs,
    )


def unpack(matrix: PackedMatrix) -> Tensor:
    """The weight [N, K] that a packed matrix stands for, float32."""
    weight = matrix.panels.transpose(1, 2).flatten(2).flatten(0, 1).float()
    if matrix.scale is not None:
        weight = weight * matrix.scale[:, None]
    return weight[: matrix.out_features, : matrix.in_features].contiguous()


def pad_columns(x: Tensor) -> Tensor:
    """[N] to [64 P], with zeros."""
    return F.pad(x, (0, -len(x) % PANEL_COLUMNS)).contiguous()


def multiply(x: Tensor, matrix: PackedMatrix, using: Context | None = None) -> Tensor:
    """Return x Wᵀ + bias, float32 [rows, N] of x [rows, K].

    A row's bits depend neither on the number of rows nor on the number of threads.
    """
    return multiply_by(matrix.struct(), x, matrix.out_features, using or context())


def multiply_by(matrix: MatrixStruct, x: Tensor, out_features: int, using: Context) -> Tensor:
    """The same with a matrix as the kernels know it. Whoever made it keeps its arrays alive."""
    x = x.float().contiguous()
    rows, in_features = x.shape
    out = torch.empty(rows, out_features)
    using.kernels.dijiang_multiply(
        using.handle, ctypes.byref(matrix), x.data_ptr(), rows, in_features, out.data_ptr()
    )
    return out
