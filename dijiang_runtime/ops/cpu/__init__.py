"""Kernels compiled for the CPU. See `types.h` for what they compute on, `decoder.inl` for a step.

Built with the package where there is a C++ compiler, for several kinds of processors at once; the
best that runs is chosen when they are used. Without them everything works in torch, slower.

    library.py      loads them; a context is a target with its threads and memory
    packed.py       packed matrices and their product
    recurrence.py   the recurrent step alone
    sampling.py     rows of logits to tokens and logprobs
"""

from dijiang_runtime.ops.cpu.library import context, is_available, targets
from dijiang_runtime.ops.cpu.recurrence import step

__all__ = ["context", "is_available", "step", "targets"]
