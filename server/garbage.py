"""When Python looks for garbage that only its cycle collector finds.

A full collection looks at everything that lives, and nothing is answered meanwhile: with ten
thousand open streams that takes more than a second, to find nothing. So it happens while few
requests run, and otherwise only after very many objects more have come than have gone.
"""

import asyncio
import gc
from collections.abc import Callable

THRESHOLDS = (2_000, 10, 500)
"""Of the three generations. The oldest is collected after 10,000,000 new objects."""

QUIET_SECONDS = 10.0
FEW_REQUESTS = 64


async def collect_when_quiet(num_active: Callable[[], int]) -> None:
    """Take over the collector, until cancelled. What lives now is never looked at again.

    Args:
        num_active: Tells how many requests run.
    """
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            if num_active() <= FEW_REQUESTS:
                gc.collect()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
