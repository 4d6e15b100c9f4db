"""Keys and texts stay out of everything that is written down."""

from pathlib import Path

import httpx

from tests.e2e.server_process import ServerProcess

KEY, TEXT = "canary-key", "canary-text"


def test_neither_keys_nor_prompts_are_written_down(tiny_model: Path) -> None:
    env = {"DIJIANG_API_KEYS": f"other,{KEY}"}
    with ServerProcess(tiny_model, "--log-level", "debug", "--access-log", env=env) as server:
        url = server.wait_ready()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            chat = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
            client.post("/v1/chat/completions", json=chat).raise_for_status()
            for body in ({"prompt": TEXT, "n": TEXT}, {"prompt": TEXT, "stop": [TEXT] * 99}):
                refused = client.post("/v1/completions", json=body)
                assert refused.status_code == 400
                assert TEXT not in refused.text
            wrong = client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}x"})
            assert wrong.status_code == 401
            exported = client.get("/metrics").text
        arguments = " ".join(server.engine.cmdline())
    for written in (server.text, exported, arguments):
        assert KEY not in written
        assert TEXT not in written
    assert "/v1/chat/completions" in server.text
