"""Kernels in Triton, for CUDA devices: what a decoder's step is made of between its first
embedding and its logits.

Every sum is taken in an order that is fixed when a kernel is compiled, and nothing is compiled or
tuned for a batch size: a row's bits do not depend on who else is in the batch. No atomics.

    shared.py       what several kernels need
    linear.py       matrix products with their epilogues, in tiles of one shape
    norm.py         layer norm, RMS norm, and the group norm of a read-out with its gate
    heads.py        a head from its projection to its features
    features.py     the feature map over the tokens of prompts
    step.py         one token of every row, in one launch
    step_kernel.py  what it launches: features, state, read-out, norm and gate in one pass
    chunk.py        parts of several prompts in one launch, each from its own state
    chunk_kernel.py what it launches: one part, chunk by chunk

With TRITON_INTERPRET=1 they run on the CPU, slowly; that is how they are tested without a GPU.
Importing this package imports Triton.
"""

from dijiang_runtime.ops.triton.chunk import chunk, prefill
from dijiang_runtime.ops.triton.features import features
from dijiang_runtime.ops.triton.heads import Heads
from dijiang_runtime.ops.triton.linear import linear
from dijiang_runtime.ops.triton.norm import group_norm, norm
from dijiang_runtime.ops.triton.step import decode, step

__all__ = [
    "Heads",
    "chunk",
    "decode",
    "features",
    "group_norm",
    "linear",
    "norm",
    "prefill",
    "step",
]
