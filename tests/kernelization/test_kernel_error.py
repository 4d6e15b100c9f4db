"""Rules for the Gaussian mean, their weights, and the errors that they leave."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from typer.testing import CliRunner

from dijiang_runtime.kernelization.error import (
    approximate_attention,
    kernel_errors,
    synthetic,
    uniform_error,
)
from dijiang_runtime.kernelization.quasi_monte_carlo import (
    RULES,
    Frequencies,
    box_discrepancy,
    box_discrepancy_weights,
    frequencies,
)
from server.cli import app


@pytest.mark.parametrize("rule", ["monte_carlo", "qmc", "dct"])
def test_a_rule_draws_frequencies_of_unit_variance(rule) -> None:
    w = frequencies(rule, 4096, 8, seed=1).w
    assert torch.allclose(w.square().mean(0), torch.ones(8).double(), atol=0.15)
    assert torch.equal(w, frequencies(rule, 4096, 8, seed=1).w)
    assert not torch.equal(w, frequencies(rule, 4096, 8, seed=2).w)


def test_the_weights_solve_the_quadratic_program() -> None:
    """Against a general constrained minimiser on the sinc kernel written out."""
    w = frequencies("qmc", 12, 3, seed=0).w.numpy()
    b = 0.9
    delta = w[:, None, :] - w[None, :, :]
    gram = np.prod(np.sinc(b * delta / np.pi), axis=2)
    beta = (np.arange(20000) + 0.5) / 20000 * b
    mean = np.prod((np.cos(w[..., None] * beta) * np.exp(-(beta**2) / 2)).mean(-1), axis=1)
    found = scipy.optimize.minimize(
        lambda x: x @ gram @ x - 2 * mean @ x,
        np.full(12, 1 / 12),
        jac=lambda x: 2 * (gram @ x - mean),
        bounds=[(0, None)] * 12,
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10000},
    )
    ours = box_discrepancy_weights(torch.from_numpy(w), box=b).numpy()
    assert (ours >= 0).all()
    value = ours @ gram @ ours - 2 * mean @ ours
    assert value <= found.fun + 1e-8


@pytest.mark.parametrize(("num_features", "head_dim"), [(32, 4), (64, 8), (128, 64)])
def test_weights_never_raise_the_discrepancy(num_features: int, head_dim: int) -> None:
    drawn = frequencies("qmc", num_features, head_dim, seed=3)
    weights = box_discrepancy_weights(drawn.w)
    weighted, plain = (box_discrepancy(drawn.w, x) for x in (weights, drawn.weights))
    assert -1e-6 < weighted <= plain
    assert weighted < 1


def test_low_discrepancy_points_and_weights_pay_in_few_dimensions() -> None:
    data = synthetic(64, 4, 1.0, seed=0)
    errors = {e.rule: e.mean for e in kernel_errors(data, [128], num_seeds=8)}
    assert errors["qmc"] < 0.9 * errors["monte_carlo"]
    assert errors["weighted_qmc"] < 0.95 * errors["qmc"]
    assert errors["monte_carlo"] < uniform_error(data)


def test_monte_carlo_converges_to_softmax_attention() -> None:
    data = synthetic(32, 4, 0.7, seed=0)
    future = torch.ones(32, 32, dtype=torch.bool).triu(1)
    scores = (data.q @ data.k.transpose(-1, -2)).masked_fill(future, float("-inf"))
    exact = scores.softmax(-1)

    def error(num_features: int) -> float:
        drawn = frequencies("monte_carlo", num_features, 4, seed=0)
        return float((approximate_attention(data.q, data.k, drawn) - exact).norm() / exact.norm())

    assert error(100_000) < 0.3 * error(256) and error(100_000) < 0.06


def test_positive_features_are_theorem_3_2() -> None:
    data = synthetic(6, 3, 1.0, seed=1)
    drawn = Frequencies(torch.randn(5, 3).double(), torch.rand(5).double())
    rows = approximate_attention(data.q, data.k, drawn)[0]
    q, k = data.q[0], data.k[0]

    def phi(x):
        return torch.exp(drawn.w @ x - x @ x / 2)

    for n in range(6):
        kernel = torch.stack([(drawn.weights * phi(q[n]) * phi(k[j])).sum() for j in range(n + 1)])
        assert torch.allclose(rows[n, : n + 1], kernel / kernel.sum(), rtol=1e-9)


def test_the_command_compares_on_synthetic_and_on_a_parents_own(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from dijiang_runtime.conversion.tokenizer import train_tokenizer

    text, parent, plot = tmp_path / "text.txt", tmp_path / "parent", tmp_path / "errors.png"
    text.write_text("Once upon a time a fox lived in a barn.\n" * 20)
    train_tokenizer([text], parent, vocab_size=260)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=260, num_hidden_layers=2, **sizes)).save_pretrained(
        parent
    )
    arguments = ["kernel-error", str(parent), "--data", str(text), "--features", "8"]
    arguments += ["--features", "16", "--head-dim", "8", "--seeds", "2", "--tokens", "16"]
    result = CliRunner().invoke(app, [*arguments, "--plot", str(plot), "--json"])

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert len(figures["errors"]) == 3 * 2 * len(RULES)
    assert set(figures["uniform"]) == {e["source"] for e in figures["errors"]}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, ["kernel-error", str(parent)]).exit_code == 2
