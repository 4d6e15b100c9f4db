"""The buckets of the histograms."""

from typing import Final

# vLLM's families of buckets. A small recurrent model decodes a token in well under 10 ms, where
# vLLM's gaps begin, so the gaps get four finer buckets.
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKEN_BUCKETS: Final = tuple(
    float(digit * 10**exponent) for exponent in range(6) for digit in (1, 2, 5)
) + (1e6,)
ITERATION_BUCKETS: Final = (1.0, *(float(2**exponent) for exponent in range(3, 15)))
BATCH_BUCKETS: Final = tuple(float(2**exponent) for exponent in range(9))
POSITION_BUCKETS: Final = {1024: "0-1023", 4096: "1024-4095", 16384: "4096-16383"}
"""Where in its text a token stands, by the first position beyond the bucket."""
LAST_POSITION_BUCKET: Final = "16384-"
CHOICES_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)


def position_bucket(position: int) -> str:
    """The bucket of a token's position in its text, prompt included."""
    for end, bucket in POSITION_BUCKETS.items():
        if position < end:
            return bucket
    return LAST_POSITION_BUCKET
