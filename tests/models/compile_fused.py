"""Compile all kernels of a fused decoder for a compute capability, without a device.

Prints one line for each: its name and its bytes of shared memory. Run by `test_fused_compiles.py`
in a process of its own, because here kernels are never run.
"""

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dijiang_runtime.models.attention import default_log_decay_rate
from dijiang_runtime.ops import triton
from dijiang_runtime.ops.triton import Heads

ROWS = 70


class NoDevice:
    """What Triton asks of a device when it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int) -> None:
    driver.set_active(NoDevice(capability))
    compile_and_launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = compile_and_launch(self, *args, grid=grid, warmup=True, **options)
        print(self.__name__, kernel.metadata.shared, len(kernel.asm["cubin"]) > 0)

    JITFunction.run = compile_only
    matrices(torch.bfloat16)
    matrices(torch.float32)
    attention(head_dim=64, num_heads=8, num_kv_heads=8)
    attention(head_dim=80, num_heads=32, num_kv_heads=32)
    attention(head_dim=128, num_heads=8, num_kv_heads=2, norms=True)


def matrices(dtype: torch.dtype) -> None:
    x = torch.zeros(ROWS, 512, dtype=dtype)
    for outputs in (512, 4096, 8192):
        weight, bias = torch.zeros(2 * outputs, 512, dtype=dtype), torch.zeros(2 * outputs)
        for is_prompt in (False, True):
            triton.linear(x, weight[:outputs], bias[:outputs], is_prompt=is_prompt)
            triton.linear(x, weight, bias, is_prompt=is_prompt, gated=True, activation="silu")
    affine = torch.zeros(512), torch.zeros(512)
    triton.norm(x.float(), affine, affine, eps=1e-5, is_rms=False, out_dtype=dtype)
    triton.group_norm(x, *affine, x, num_groups=64, eps=1e-5, out_dtype=dtype)


def attention(*, head_dim: int, num_heads: int, num_kv_heads: int, norms: bool = False) -> None:
    norm = torch.ones(head_dim)
    heads = Heads(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        feature_map="softmax",
        negated_half=True,
        has_normalizer=True,
        rotary_dim=16,
        query_scale=1.0,
        projection=torch.zeros(num_kv_heads, head_dim, head_dim),
        feature_weight=None,
        norms=(norm, norm) if norms else None,
        norm_eps=1e-5,
        log_decay=-default_log_decay_rate(num_kv_heads).exp().float(),
        table_scales=None,
    )
    width = heads.gate_offset + heads.query_width
    rows = torch.zeros(ROWS, width, dtype=torch.bfloat16)
    angles = torch.zeros(ROWS, 1, 8), torch.zeros(ROWS, 1, 8)
    states = torch.zeros(4, num_kv_heads, 2 * head_dim, head_dim + 1)
    index = torch.zeros(ROWS, dtype=torch.int64)
    kept: dict[str, Any] = {"gated": True, "out_dtype": torch.bfloat16}
    triton.decode(rows, heads, angles, index, states, index, index, **kept)
    parts = torch.tensor([[0, ROWS, 0, 1]])
    triton.prefill(rows, heads, angles, index, states, parts, **kept)


if __name__ == "__main__":
    main(int(sys.argv[1]))
