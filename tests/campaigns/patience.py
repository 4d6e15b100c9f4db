"""A campaign on a shared machine may be paused as a whole, which must not look like a failure."""

SECONDS = 3600.0
"""Longer than any pause, shorter than for ever: what waits so long hangs."""

FLAGS = tuple(
    word
    for name in ("header", "body", "keep-alive", "send")
    for word in (f"--{name}-timeout-seconds", f"{SECONDS:g}")
) + tuple(word for name in ("queue", "request") for word in (f"--max-{name}-seconds", "0"))
"""For the server under test: its limits on time have tests of their own."""
