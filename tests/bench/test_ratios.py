"""`dijiang bench --ratios` measures the engine, the machine and its peers, and divides rightly."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dijiang_runtime.bench import ceilings, facts, peers
from dijiang_runtime.bench.ceilings import Ceilings
from dijiang_runtime.bench.facts import shape_config
from dijiang_runtime.bench.peers import Peer, PeerError
from dijiang_runtime.bench.ratios import RatioBench, RatioOptions
from dijiang_runtime.models.loader import load_model
from server import cli

SLOW = """
import json, sys
print('"ready"', flush=True)
for line in sys.stdin:
    job = json.loads(line)
    print(100.0 * job.get("position", job.get("length")), flush=True)
"""


def run(tiny_model: Path, machine: Ceilings, others: list[Peer]) -> dict[str, Any]:
    options = RatioOptions(decodes=((2, 9),), prefills=(70,), rounds=3, turn_seconds=0.0)
    model = load_model(tiny_model)
    return RatioBench(model, options, lambda: machine, lambda text: None).run(others)


def test_shares_and_speed_ups_are_ratios_of_what_was_measured(tiny_model: Path) -> None:
    with Peer("slow", [sys.executable, "-c", SLOW]) as slow:
        result = run(tiny_model, Ceilings(1e9, 4e9, 1e3), [slow])
    decode, prefill = result["decode"][0], result["prefill"][0]
    seconds = decode["seconds"]["engine"]["median"]
    facts = result["model"]
    assert decode["bytes"] == facts["weight_bytes"] + 2 * 2 * facts["state_bytes"]
    assert decode["bandwidth_share"] == pytest.approx(decode["bytes"] / 1e9 / seconds)
    assert decode["cached_bandwidth_share"] == pytest.approx(decode["bandwidth_share"] / 4)
    # A machine that multiplies so slowly is bound by that.
    assert decode["bound_by"] == "matrix"
    assert decode["speed_ups"]["slow"] == pytest.approx(900 / seconds)
    assert prefill["speed_ups"]["slow"] == pytest.approx(
        7000 / prefill["seconds"]["engine"]["median"]
    )


def test_a_machine_with_slow_memory_is_bound_by_it(tiny_model: Path) -> None:
    row = run(tiny_model, Ceilings(1e3, 1e3, 1e15), [])["decode"][0]
    assert row["bound_by"] == "memory"
    assert row["roofline_share"] == pytest.approx(row["bandwidth_share"])


def test_a_peer_that_breaks_off_says_why() -> None:
    with pytest.raises(PeerError, match="no such thing"):
        Peer("broken", [sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_transformers_is_a_peer_that_decodes_at_a_position() -> None:
    with peers.transformers(shape_config("pythia-70m"), 1, 64, "float32") as peer:
        assert peer.decode(2, 16, 1) > 0
        assert peer.decode(2, 16, 2) > 0
        assert peer.prefill(16) > 0


def test_a_point_that_is_none_is_refused_before_any_work() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "--ratios", "--point", "8x128"])
    assert result.exit_code == 2
    assert "8@2048" in result.output


def test_the_command_writes_its_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facts.SHAPES, "pythia-70m", (64, 2, 4, 128))
    monkeypatch.setattr(ceilings, "LARGE_BYTES", 1 << 22)
    file = tmp_path / "ratios.json"
    options = ["--ratios", "--point=1@8", "--rounds=2", "--threads=1", f"--json={file}"]
    result = CliRunner().invoke(cli.app, ["bench", *options])
    assert result.exit_code == 0, result.output
    row = json.loads(file.read_text())["decode"][0]
    assert (row["batch"], row["position"]) == (1, 8)
    assert 0 < row["bandwidth_share"]
