"""The sampler against a straightforward float64 reimplementation, and against probability."""

import itertools
import math
import random
from collections.abc import Sequence as Seq

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from dijiang_runtime.engine.adjustments import mask
from dijiang_runtime.engine.drawing import draw_in_torch
from dijiang_runtime.engine.logprobs import raw_logprobs
from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.engine.ranking import rank
from dijiang_runtime.engine.rng import uniform
from dijiang_runtime.engine.sampler import Sampler, mass_temperature
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.ops.cpu.library import (
    NO_TARGET,
    TARGET_VARIABLE,
    context,
    is_available,
    targets,
)
from dijiang_runtime.ops.cpu.sampling import Adjustment, LogitKernels, Panels, RowScan
from dijiang_runtime.request import SamplingParams
from tests.engine.masked import let_in
from tests.engine.requests import make_request, random_sampling

EOS = (0, 1)
Row = npt.NDArray[np.float64]


def kernels() -> LogitKernels | None:
    """Those of the target that the test has chosen."""
    return LogitKernels(context()) if is_available() else None


def draw(
    logits: torch.Tensor, rows: Seq[int], params: Seq[SamplingParams], uniforms: Seq[float]
) -> list[int]:
    if (compiled := kernels()) is not None:
        return compiled.draw(logits, rows, params, uniforms)
    drawn: list[int] = draw_in_torch(logits[list(rows)], params, uniforms).tolist()
    return drawn


def make_sequence(
    params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None
) -> Sequence:
    request = make_request("r", prompt or [2], **msgspec.structs.asdict(params))
    return Sequence(request, seed=params.seed or 0, output_token_ids=output or [])


def reference_logits(logits: Row, sequence: Sequence) -> Row:
    params = sequence.request.sampling
    prompt, output = sequence.request.prompt_token_ids, sequence.output_token_ids
    x = logits.copy()
    for token_id, bias in params.logit_bias.items():
        x[token_id] += bias
    if len(output) < params.min_tokens:
        for token_id in [*params.stop_token_ids, *(() if params.ignore_eos else EOS)]:
            x[token_id] = -1e30
    for *before, last in params.bad_words:
        if before == output[len(output) - len(before) :]:
            x[last] = -1e30
    for token_id in set(prompt) | set(output):
        if x[token_id] > 0:
            x[token_id] /= params.repetition_penalty
        else:
            x[token_id] *= params.repetition_penalty
    for token_id in set(output):
        x[token_id] -= params.presence_penalty
        x[token_id] -= params.frequency_penalty * output.count(token_id)
    if params.allowed_token_ids is not None:
        x[[i for i in range(len(x)) if i not in params.allowed_token_ids]] = -np.inf
    return x


def reference_probabilities(x: Row, params: SamplingParams) -> Row:
    p = np.exp((x - x.max()) / params.temperature)
    p /= p.sum()
    p[p < params.min_p * p.max()] = 0.0
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if params.top_k > 0:
        for i in order[params.top_k :]:
            p[i] = 0.0
    if params.top_p < 1:
        p /= p.sum()
        mass = 0.0
        for i in order:
            if mass >= params.top_p:
                p[i] = 0.0
            mass += p[i]
    return p / p.sum()


def reference_token(logits: Row, sequence: Sequence) -> int:
    params = sequence.request.sampling
    x = reference_logits(logits, sequence)
    if params.is_greedy:
        return int(np.argmax(x))
    p = reference_probabilities(x, params)
    point = uniform(sequence.seed, sequence.next_position)
    return int(np.searchsorted(np.cumsum(p), point, side="right"))


def random_case(rng: random.Random, vocab_size: int) -> tuple[torch.Tensor, Sequence]:
    params = random_sampling(rng)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    logits = torch.randn(vocab_size, generator=generator) * rng.choice((0.5, 3.0))
    if rng.random() < 0.3:
        logits = logits.round()  # Many equals.
    output = [rng.randrange(30) for _ in range(rng.choice((0, 3, 40)))]
    prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 20))]
    return logits, make_sequence(params, prompt, output)


def scan_of(logits: torch.Tensor, sequences: list[Sequence]) -> RowScan:
    """What the vocabulary projection finds on its way."""
    temperatures = [mass_temperature(sequence) for sequence in sequences]
    masks = [mask(sequence, logits.shape[1]) for sequence in sequences]
    allowed = let_in(logits, masks)
    panels = Panels.empty(logits.shape[1], masks, temperatures)
    assert panels.largest_and_mass is not None
    for panel, some in enumerate(allowed.split(64, dim=1)):
        largest = some.amax(dim=1)
        shares = (some - largest[:, None]).double() / torch.tensor(temperatures)[:, None]
        mass = shares.exp().sum(dim=1)
        panels.largest_and_mass[:, :, panel] = torch.stack([largest, mass.nan_to_num().float()])
    return RowScan([True] * len(logits), allowed.numpy().argmax(axis=1).tolist(), panels)


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("target", [*targets(), NO_TARGET])
@pytest.mark.parametrize("vocab_size", [400, 5003])
def test_every_row_gets_the_token_of_the_reference(
    vocab_size: int, target: str, is_scanned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    rng = random.Random(vocab_size)
    cases = [random_case(rng, vocab_size) for _ in range(300)]
    expected = [reference_token(x.double().numpy(), sequence) for x, sequence in cases]
    logits = torch.stack([x for x, _ in cases])

    sequences = [sequence for _, sequence in cases]
    scan = scan_of(logits, sequences) if is_scanned else None
    sampled = Sampler(EOS, kernels()).sample(logits, sequences, scan)

    assert [token.token_id for token in sampled] == expected
    # The cases are not all the easy one.
    num_argmax = sum(
        int(x.argmax()) == token for (x, _), token in zip(cases, expected, strict=True)
    )
    assert 50 < num_argmax < 250


@pytest.mark.parametrize("vocab_size", [387, 5003])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.usefixtures("implementation")
def test_a_row_is_sampled_the_same_in_any_batch(vocab_size: int, num_threads: int) -> None:
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        rng = random.Random(5)
        cases = [random_case(rng, vocab_size) for _ in range(60)]
        sampler = Sampler(EOS, kernels())
        alone = [sampler.sample(x[None].clone(), [sequence])[0] for x, sequence in cases]
        scanned = [
            sampler.sample(x[None].clone(), [sequence], scan_of(x[None], [sequence]))[0]
            for x, sequence in cases
        ]
        for size in (2, 17, 60):
            chosen = rng.sample(range(60), size)
            logits = torch.stack([cases[i][0] for i in chosen])
            sequences = [cases[i][1] for i in chosen]
            scan = scan_of(logits, sequences)
            assert sampler.sample(logits.clone(), sequences) == [alone[i] for i in chosen]
            assert sampler.sample(logits, sequences, scan) == [scanned[i] for i in chosen]
    finally:
        torch.set_num_threads(num_threads_before)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(top_k=12, top_p=0.9),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=0.02, top_k=10, top_p=0.95, temperature=1.5),
    ],
    ids=lambda p: f"t{p.temperature}-k{p.top_k}-p{p.top_p}-m{p.min_p}",
)
@pytest.mark.usefixtures("implementation")
def test_tokens_are_drawn_with_their_probabilities(params: SamplingParams) -> None:
    logits = 1.5 * torch.randn(20, generator=torch.Generator().manual_seed(1))
    expected = reference_probabilities(logits.double().numpy(), params)
    num_draws = 20_000
    uniforms = [uniform(seed=11, position=i) for i in range(num_draws)]

    drawn = draw(logits.expand(num_draws, -1), range(num_draws), [params] * num_draws, uniforms)

    counts = np.bincount(drawn, minlength=20)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        p_value = stats.chisquare(counts[possible], expected[possible] * num_draws).pvalue
        assert p_value > 1e-4


@pytest.mark.usefixtures("implementation")
def test_equals_are_kept_and_chosen_by_lowest_id() -> None:
    logits = torch.zeros(1, 1000)
    greedy = make_sequence(SamplingParams(temperature=0.0))
    assert Sampler(EOS, kernels()).sample(logits.clone(), [greedy])[0].token_id == 0

    for params in (SamplingParams(top_k=3), SamplingParams(top_p=0.0025)):
        drawn = draw(
            logits.expand(200, -1), range(200), [params] * 200, [i / 200 for i in range(200)]
        )
        assert set(drawn) == {0, 1, 2}


@pytest.mark.usefixtures("implementation")
def test_the_largest_random_number_still_gives_a_possible_token() -> None:
    logits = torch.full((1, 50), -1e9)
    logits[0, :3] = torch.tensor([0.3, 0.1, 0.2])

    assert draw(logits, [0], [SamplingParams()], [1 - 2**-53]) == [2]


@pytest.mark.usefixtures("implementation")
def test_a_flat_distribution_is_cut_correctly_beyond_the_first_prefix() -> None:
    logits = torch.zeros(1, 10_000)
    params = SamplingParams(top_p=0.49995)

    drawn = draw(
        logits.expand(100, -1), range(100), [params] * 100, [(i + 0.51) / 100 for i in range(100)]
    )

    # 5,000 tokens are kept, all equally likely.
    assert drawn == [50 * i + 25 for i in range(100)]


@pytest.mark.usefixtures("implementation")
def test_a_row_with_every_token_masked_still_gets_one() -> None:
    params = SamplingParams(max_tokens=5, min_tokens=5, stop_token_ids=tuple(range(10)))

    sampled = Sampler(EOS, kernels()).sample(torch.randn(1, 10), [make_sequence(params)])

    assert 0 <= sampled[0].token_id < 10


@pytest.mark.usefixtures("implementation")
def test_only_allowed_tokens_are_chosen_even_where_they_are_all_masked() -> None:
    params = SamplingParams(
        max_tokens=5,
        min_tokens=5,
        allowed_token_ids=(4, 7),
        stop_token_ids=(4, 7),
        logit_bias={2: 100.0},
    )
    logits = torch.randn(200, 10)

    sampled = Sampler(EOS, kernels()).sample(
        logits, [make_sequence(msgspec.structs.replace(params, seed=i)) for i in range(200)]
    )

    assert {token.token_id for token in sampled} == {4, 7}


@pytest.mark.parametrize(
    ("output", "expected"),
    [([], 9), ([1], 9), ([1, 2], 8), ([5, 1, 2], 8), ([2, 1], 9), ([8], 7), ([1, 2, 8], 7)],
    ids=str,
)
@pytest.mark.usefixtures("implementation")
def test_the_last_token_of_a_bad_word_is_not_chosen_after_the_others(
    output: list[int], expected: int
) -> None:
    logits = torch.arange(10.0)[None]
    # Likeliest are 9, 8, 7; a prompt is no output.
    params = SamplingParams(temperature=0.0, bad_words=((1, 2, 9), (8, 9), (8, 8)))

    [sampled] = Sampler(EOS, kernels()).sample(logits, [make_sequence(params, [1, 2, 8], output)])

    assert sampled.token_id == expected


@pytest.mark.usefixtures("implementation")
def test_a_bad_word_of_one_token_is_never_chosen() -> None:
    params = SamplingParams(temperature=0.0, bad_words=((9,), (8,)))

    [sampled] = Sampler(EOS, kernels()).sample(torch.arange(10.0)[None], [make_sequence(params)])

    assert sampled.token_id == 7


@pytest.mark.usefixtures("implementation")
def test_logprobs_are_the_models_own_whatever_the_parameters() -> None:
    logits = torch.randn(1, 100)
    expected = torch.log_softmax(logits[0].double(), dim=-1)
    params = SamplingParams(
        temperature=0.0, logit_bias={42: 100.0}, repetition_penalty=2.0, logprobs=3
    )

    [sampled] = Sampler(EOS, kernels()).sample(logits.clone(), [make_sequence(params)])

    assert sampled.token_id == 42
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(expected[42].item(), abs=1e-6)
    assert sampled.logprobs.top_ids == tuple(expected.topk(3).indices.tolist())
    assert sampled.logprobs.top_logprobs == pytest.approx(
        expected.topk(3).values.tolist(), abs=1e-6
    )


@pytest.mark.parametrize("target", [*targets(), NO_TARGET])
@pytest.mark.parametrize("num_top", [1, 20, 700])
def test_logprobs_of_a_large_vocabulary_are_those_of_float64(
    target: str, num_top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    logits = 4 * torch.randn(3, 50_304, generator=torch.Generator().manual_seed(2))
    logits[1] = logits[1].round()  # Many equals.
    logits[2, 5] = 200.0  # All others weigh nothing beside it.
    expected = torch.log_softmax(logits.double(), dim=-1)

    reported = raw_logprobs(logits, [0, 50_303, 5], [num_top] * 3, kernels=kernels())

    for row, token_id, truth in zip(reported, (0, 50_303, 5), expected, strict=True):
        assert row.logprob == pytest.approx(truth[token_id].item(), abs=1e-5)
        order = sorted(range(len(truth)), key=lambda i: (-truth[i].item(), i))[:num_top]
        assert row.top_ids == tuple(order)
        assert row.top_logprobs == pytest.approx(truth[order].tolist(), abs=1e-4)


def random_masks(rng: np.random.Generator, num: int, vocab_size: int) -> list[TokenMask]:
    """Masks that let in few, some and nearly all tokens, and a word of all and one of none."""
    masks = []
    for share in itertools.islice(itertools.cycle((0.002, 0.3, 0.9, 1.0)), num):
        allowed = rng.random(vocab_size) < share
        allowed[64:160], allowed[200:300] = share > 0.5, False
        allowed[rng.integers(vocab_size)] = True
        masks.append(TokenMask.of(allowed.nonzero()[0].tolist(), vocab_size))
    return masks


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("vocab_size", [5, 32, 1000, 5003])
@pytest.mark.parametrize("target", targets())
def test_tokens_that_may_not_come_are_as_if_their_logits_were_minus_infinity(
    target: str, vocab_size: int, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    kernels = LogitKernels(context())
    logits = torch.randn(40, vocab_size).mul(2).round() / 2  # Many equals.
    rows = range(len(logits))
    masks = random_masks(np.random.default_rng(vocab_size), len(logits), vocab_size)
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
        for t, k, p, m in itertools.islice(
            itertools.cycle(itertools.product((0.7, 1.5), (0, 3), (0.8, 1.0), (0.0, 0.1))),
            len(rows),
        )
    ]
    panels = Panels(masks)
    if is_known:
        sequences = [make_sequence(p) for p in params]
        for sequence, some in zip(sequences, masks, strict=True):
            sequence.is_constrained, sequence.allowed = True, some
        panels = scan_of(logits, sequences).panels or panels
    uniforms = np.random.default_rng(1).random(len(rows)).tolist()
    before = logits.clone()

    drawn = kernels.draw(logits, rows, params, uniforms, panels)
    likeliest = kernels.adjust(logits, [Adjustment(i) for i in rows], panels, least=-1e30)

    masked = let_in(before, masks)
    assert drawn == kernels.draw(masked, rows, params, uniforms)
    assert likeliest == masked.numpy().argmax(axis=1).tolist()
    assert logits.equal(before)


@pytest.mark.parametrize("target", targets())
def test_a_row_in_which_no_token_may_come_gets_the_first(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    kernels, logits = LogitKernels(context()), torch.randn(4, 1000)
    panels = Panels([TokenMask.of([], 1000)] * 4)
    params = [SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.5)]

    assert kernels.draw(logits, [0, 1, 2], params, [0.5] * 3, panels) == [0, 0, 0]
    assert kernels.adjust(logits, [Adjustment(3)], panels, least=-1e30) == [0]


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("target", [*targets(), NO_TARGET])
def test_penalties_and_biases_count_before_tokens_are_forbidden(
    target: str, is_scanned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    params = SamplingParams(
        temperature=0.0,
        allowed_token_ids=(3, 70, 71, 900),
        logit_bias={3: -8.0, 70: 1.0, 500: 50.0},
        presence_penalty=2.0,
        logprobs=2,
    )
    sequences = [make_sequence(params, prompt=[5], output=[70])]
    logits = torch.zeros(1, 1000)
    logits[0, [3, 70, 71, 900, 500]] = torch.tensor([9.0, 4.0, 3.5, 2.0, 8.0])

    scan = scan_of(logits, sequences) if is_scanned else None
    [token] = Sampler(EOS, kernels()).sample(logits, sequences, scan)

    assert token.token_id == 71
    assert token.logprobs is not None
    assert token.logprobs.top_ids == (3, 500)  # The model's own likeliest, which may not come.


@pytest.mark.parametrize("target", targets())
def test_rows_that_are_not_finite_are_found_wherever_the_value_is(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    logits = torch.randn(8, 5003)
    logits[0, 0] = torch.nan
    logits[2, 5002] = torch.inf
    logits[3, 17] = -torch.inf
    logits[5, :] = torch.finfo(torch.float32).max

    found = LogitKernels(context()).scan_rows(logits).finite

    assert found == [False, True, False, False, True, True, True, True]
    assert found == logits.isfinite().all(dim=1).tolist()


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("size", [1, 15, 16, 511, 512, 513, 5003])
def test_the_likeliest_token_is_found_wherever_it_is_the_first_among_equals(
    target: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    logits = torch.randn(200, size).mul(2).round() / 2  # Many equals.
    logits[:50] -= 1000  # Padding of a vector must not win.
    logits[0] = torch.finfo(torch.float32).min
    logits[1, -1] = 5000

    finite, likeliest, _ = LogitKernels(context()).scan_rows(logits)

    assert all(finite)
    assert likeliest == logits.numpy().argmax(axis=1).tolist()


@pytest.mark.usefixtures("implementation")
def test_each_row_reports_as_many_alternatives_as_it_asked_for() -> None:
    reported = raw_logprobs(torch.randn(3, 10), [0, 1, 2], [0, 4, 2], kernels=kernels())

    assert [len(row.top_ids) for row in reported] == [0, 4, 2]


def test_nothing_is_read_back_before_all_is_launched() -> None:
    """Tensors on `meta` have no values: whoever waited for one would fail."""
    rng = random.Random(8)
    cases = [random_case(rng, 400) for _ in range(60)]
    logits = torch.stack([x for x, _ in cases]).to("meta")

    pending = Sampler(EOS, kernels()).on_device.launch(logits, [sequence for _, sequence in cases])

    assert pending.token_ids.shape == pending.is_finite.shape == (60,)
    assert pending.logprobs is not None
    assert len(pending.logprobs.top_ids) == len(pending.reported) > 10


def test_a_row_that_is_not_finite_is_reported_and_its_neighbours_get_their_tokens() -> None:
    rng = random.Random(9)
    cases = [random_case(rng, 400) for _ in range(40)]
    logits, sequences = torch.stack([x for x, _ in cases]), [s for _, s in cases]
    expected, *_ = Sampler(EOS, kernels()).on_device.launch(logits.clone(), sequences).read()
    bad = {3: torch.nan, 4: torch.inf, 17: -torch.inf}
    for row, value in bad.items():
        logits[row, 5] = value

    tokens, is_finite, _ = Sampler(EOS, kernels()).on_device.launch(logits, sequences).read()

    assert is_finite == [i not in bad for i in range(40)]
    assert all(tokens[i] == expected[i] for i in range(40) if i not in bad)
    assert all(0 <= token.token_id < 400 for token in tokens)


@pytest.mark.parametrize("num", [0, 1, 4, 6])
def test_tokens_are_ranked_by_logit_and_equals_by_id(num: int) -> None:
    infinity = float("inf")
    x = torch.tensor(
        [
            [1.0, 3.0, 2.0, 3.0, 2.0, 2.0],
            [0.0, -0.0, 1e-40, -1e-40, -infinity, 0.0],
            [-1.0, -2.0, -1.0, 3e38, -3e38, infinity],
        ]
    )

    ids = rank(x, num)

    assert ids.tolist() == [
        [1, 3, 2, 4, 5, 0][:num],
        [2, 0, 1, 5, 3, 4][:num],
        [5, 3, 0, 2, 1, 4][:num],
    ]


def test_random_numbers_are_uniform_and_independent_along_positions_and_seeds() -> None:
    along_positions = np.array([uniform(3, i) for i in range(20_000)])
    along_seeds = np.array([uniform(i, 3) for i in range(20_000)])
    for numbers in (along_positions, along_seeds):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-4
        for lag in (1, 2, 7):
            assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 0.03
    # The n choices of a request have neighbouring seeds.
    next_seed = np.array([uniform(4, i) for i in range(20_000)])
    assert abs(np.corrcoef(along_positions, next_seed)[0, 1]) < 0.03


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
    assert len({uniform(seed, i) for seed in range(-50, 50) for i in range(100)}) == 10_000
    assert all(0.0 <= uniform(seed, 0) < 1.0 for seed in range(1000))
    assert math.isclose(uniform(0, 0) * 2**53 % 1, 0.0)
