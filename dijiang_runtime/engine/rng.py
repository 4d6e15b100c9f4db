"""Random numbers by counting: a function of (seed, position), so nothing else can change them.

SplitMix64 (Steele, Lea, Flood 2014): a Weyl sequence through a 64-bit mixer. The seed is mixed
first, so that the neighbouring seeds of `n` choices start far apart.
"""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1), a multiple of 2^-53, for a seed of 64 bits and a position."""
    state = (_mix(seed & _MASK) + (position + 1) * _GOLDEN_GAMMA) & _MASK
    return (_mix(state) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
