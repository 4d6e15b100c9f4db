"""The JavaScript clients, each with tests of its own under Node.js."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"


@pytest.mark.parametrize("script", ["openai.test.mjs", "ai.test.mjs"])
def test_javascript(base_url: str, tools_url: str, run: Callable[..., str], script: str) -> None:
    urls = {"BASE_URL": base_url, "TOOLS_URL": tools_url}
    environment = {**os.environ, **urls, "AI_SDK_LOG_WARNINGS": "false"}
    report = run("node", "--test", "--test-reporter=tap", script, cwd=FOLDER, env=environment)
    assert "# fail 0" in report and "# pass 0" not in report
