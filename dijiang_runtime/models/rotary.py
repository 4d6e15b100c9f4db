"""Rotary position embedding in the rotate-half layout, with Llama-3's and linear scaling."""

import math

import torch
from torch import Tensor

from dijiang_runtime.models.config import ModelConfig, RopeScaling


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Angular frequency of each pair of dimensions, shape [rotary_dim / 2], float64."""
    pairs = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64, device="cpu")
    exponent = pairs / config.rotary_dim
    frequencies = config.rope_theta**-exponent
    if config.rope_scaling is not None:
        frequencies = _scale(frequencies, config.rope_scaling)
    return frequencies


def _scale(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # Llama 3: long wavelengths are stretched, short ones kept, those between blended.
    wavelength = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotary_angles(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for each position, each of shape [N, 1, rotary_dim / 2].

    Angles are taken in float64: in float32 they would be off by 0.01 at position 100,000.
    """
    angles = positions.double()[:, None, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the leading dimensions of every head. `x` has shape [N, heads, head_dim]."""
    cos, sin = angles
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
