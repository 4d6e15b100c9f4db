"""Load tests of any OpenAI-compatible server: what to send and when, how it was answered, what
that says. `run` is the way in; docs/loadtest.md explains the figures."""
