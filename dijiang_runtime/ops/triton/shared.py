"""What several kernels need."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

MIN_NORMALIZER = tl.constexpr(1e-30)
"""A normalizer is a sum of products of positive features; this only guards against underflow."""


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr = "tf32x3"):
    """acc + a b, summed in float32. `tf32x3` keeps nearly all bits of float32 inputs, `tf32` 11."""
    if INTERPRETED:
        # The interpreter holds bfloat16 as integers and would multiply those, and it leaves sums
        # to BLAS, where a row's bits depend on its place. Products of bfloat16 are exact here.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
        acc += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def is_finite(x):
    """1 where x is a number, 0 where it is infinite or NaN. int32."""
    return (tl.abs(x) < float("inf")).to(tl.int32)
