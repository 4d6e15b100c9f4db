"""The feature map φ, whose inner products stand for the exponential kernel of softmax attention.

    d head dim    r columns of P    m features: r, or 2 r with a negated half

Two forms, chosen by the model's config:

* `softmax_features`: φ(x) = softmax(x P), the authors' published code. Features are positive and
  sum to 1.
* `weighted_exp_features`: φ(x) = D exp(x P), equation 12 of the paper. D is learned.
"""

import torch
from torch import Tensor


def softmax_features(projected: Tensor, *, negated_half: bool = False) -> Tensor:
    """Return φ for x P, shape [..., r] to [..., m], in float32 or wider.

    With `negated_half` the features of -x follow those of x, so that opposite inputs become
    distinguishable with the same P.
    """
    positive = torch.softmax(projected, dim=-1)
    if not negated_half:
        return positive
    return torch.cat([positive, torch.softmax(-projected, dim=-1)], dim=-1)


def weighted_exp_features(
    projected: Tensor, weight: Tensor, *, negated_half: bool = False
) -> Tensor:
    """Return D exp(x P), shape [..., r] to [..., m]. `weight` is D, shape [..., m]."""
    if negated_half:
        projected = torch.cat([projected, -projected], dim=-1)
    return weight * torch.exp(projected)
