"""The chart's tests need Helm's engine: `make chart-test` installs it, `make test` does without."""

import importlib.util

if importlib.util.find_spec("helm_python") is None:
    collect_ignore_glob = ["test_*.py"]
