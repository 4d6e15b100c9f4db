"""Attention with a window by its formula."""

from torch import Tensor

from dijiang_runtime.ops import reference
from dijiang_runtime.ops.windowed import WindowInputs


def windowed_by_formula(x: WindowInputs) -> Tensor:
    """The outputs [T, Hq, d] of one whole sequence, float64."""
    phi_k = x.features(x.k, None)
    args = (x.q, x.k, x.v, x.phi_q, phi_k, x.mix, x.log_decay)
    return reference.windowed(*args, window=x.window, sinks=x.sinks)
