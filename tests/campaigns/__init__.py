"""Long runs against the real engine and the real server: `make kill-loop` and its like.

Each prints its figures, and leaves with status 1 when what it checks does not hold.
"""

import signal

# A shell starts its background jobs with SIGINT ignored; a campaign must end all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)
