"""The compiled step against the torch decoder, on every processor that this one can stand for."""

import copy
import math

import pytest
import torch
from torch import Tensor

from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.models.compiled import CompiledDecoder, prepare
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.recurrence import PendingTokens, PooledRecurrence, PrefillSegment
from dijiang_runtime.ops.cpu.library import TARGET_VARIABLE, targets
from dijiang_runtime.ops.cpu.packed import WeightFormat, unpack
from tests.engine.masked import let_in
from tests.small_models import FAMILIES, make_decoder

pytestmark = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")

LENGTH = 150
NAMES = tuple(name for name in FAMILIES if name not in ("decay-tables", "opt"))
# Of the logits, relative: half precision and int8 round what passes between the layers.
TOLERANCE = {"float32": 3e-6, "bfloat16": 1e-2, "int8": 6e-2}


def unpacked(model: CompiledDecoder) -> Decoder:
    """The float64 decoder whose weights are those that the packed matrices stand for."""
    source = copy.deepcopy(model.model)
    decoder = Decoder(model.config)
    for name, module in source.named_modules():
        if isinstance(module, PackedLinear):
            target = decoder
            *path, last = name.split(".")
            for part in path:
                target = getattr(target, part)
            if hasattr(target, last):
                getattr(target, last).weight.data = unpack(module.matrix)
                if module.bias is not None:
                    getattr(target, last).bias.data = module.bias[: module.out_features]
    missing = source.state_dict()
    state = {n: missing.get(n, t) for n, t in decoder.state_dict().items()}
    for name, module in source.named_modules():
        if isinstance(module, PackedLinear) and f"{name}.bias" in state:
            state[f"{name}.bias"] = module.bias[: module.out_features]
    decoder.load_state_dict(state)
    return decoder.double().eval().requires_grad_(False)


def run(
    model: CompiledDecoder, ids: Tensor, cuts: list[int], num_pending: int = 0
) -> tuple[Tensor, PooledRecurrence]:
    """Logits of one sequence, its prompt cut in parts and the rest decoded token by token.

    The state may lag so many tokens behind.
    """
    spec = model.config.state
    generator = torch.Generator().manual_seed(2)
    store = torch.randn(spec.pending_shape(3, num_pending), generator=generator)
    num_left = 0
    states = torch.randn(spec.state_shape(6), generator=torch.Generator().manual_seed(0))
    source, target = 2, 3
    caches = torch.randn(spec.cache_shape(6), generator=torch.Generator().manual_seed(4))
    states[:, source] = caches[:, source] = 0
    none = torch.tensor([], dtype=torch.int64)
    positions = torch.arange(len(ids))
    logits = []
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        rows = slice(start, stop)
        wrote = target
        if stop - start == 1:
            is_kept = num_left < num_pending
            wrote = source if is_kept else target
            pending = PendingTokens(store, torch.tensor([1]), torch.tensor([num_left]))
            places = torch.tensor([source]), torch.tensor([wrote])
            recurrence = PooledRecurrence(states, *places, (), caches, pending)
            num_left = num_left + 1 if is_kept else 0
        else:
            segment = PrefillSegment(0, stop - start, source, target)
            recurrence = PooledRecurrence(states, none, none, [segment], caches)
        before, caches_before, pending_before = states.clone(), caches.clone(), store.clone()
        hidden = model.hidden(ids[rows], positions[rows].contiguous(), recurrence)
        others = [row for row in range(6) if row != wrote]
        assert torch.equal(caches[:, others], caches_before[:, others])
        kept = [*others, source]  # A state that is not written stays as it is.
        assert torch.equal(states[:, kept], before[:, kept])
        assert torch.equal(store[:, [0, 2]], pending_before[:, [0, 2]])
        assert recurrence.finite_rows().all()
        logits.append(model.logits(hidden))
        if wrote == target:
            source, target = target, source
    return torch.cat(logits), recurrence


@pytest.mark.parametrize("num_pending", [0, 3])
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("weight_format", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_the_step_computes_what_the_decoder_computes(
    name: str,
    weight_format: WeightFormat,
    target: str,
    num_pending: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    model = prepare(make_decoder(**FAMILIES[name]), weight_format)
    assert isinstance(model, CompiledDecoder)
    ids = torch.randint(380, (LENGTH,), generator=torch.Generator().manual_seed(1))

    ours, _ = run(model, ids, [64, 140, *range(141, LENGTH)], num_pending)

    truth = unpacked(model)(ids[None])[0]
    # A softmax of scores makes more of what is rounded than features do.
    factor = 2 if name == "wide-sinks" and weight_format == "bfloat16" else 1
    assert float((ours - truth).norm() / truth.norm()) < factor * TOLERANCE[weight_format]


@pytest.mark.parametrize("name", ["gpt_neox", "window", "wide-sinks"])
@pytest.mark.parametrize("weight_format", TOLERANCE)
def test_a_prompt_has_the_same_bits_however_it_is_cut_and_packed(
    weight_format: WeightFormat, name: str
) -> None:
    model = prepare(make_decoder(**FAMILIES[name]), weight_format)
    assert isinstance(model, CompiledDecoder)
    ids = torch.randint(380, (LENGTH,))
    alone, _ = run(model, ids, [])
    assert torch.equal(run(model, ids, [64, 128])[0], alone)

    # Three prompts and two decodes in one pass.
    spec = model.config.state
    states, caches = torch.zeros(spec.state_shape(12)), torch.zeros(spec.cache_shape(12))
    lengths = (7, LENGTH, 64)
    packed = torch.cat([torch.tensor([5, 6]), *(ids[:n] for n in lengths)])
    positions = torch.cat([torch.tensor([9, 2]), *(torch.arange(n) for n in lengths)])
    starts = (2, 9, 9 + LENGTH)
    segments = [
        PrefillSegment(start, n, 4 + 2 * i, 5 + 2 * i)
        for i, (start, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    places = torch.tensor([0, 2]), torch.tensor([1, 3])
    recurrence = PooledRecurrence(states, *places, segments, caches)
    logits = model.logits(model.hidden(packed, positions, recurrence))

    assert torch.equal(logits[9 : 9 + LENGTH], alone)
    assert torch.equal(logits[9 + LENGTH :], alone[:64])


@pytest.mark.parametrize("name", ["gpt_neox", "window"])
def test_an_infinite_state_is_reported_by_the_row_that_makes_it(name: str) -> None:
    model = prepare(make_decoder(**FAMILIES[name]), "int8")
    assert isinstance(model, CompiledDecoder)
    spec = model.config.state
    states, caches = torch.zeros(spec.state_shape(8)), torch.zeros(spec.cache_shape(8))
    states[1, 2, 3, 5, 0] = states[0, 4, 1, :, -1] = float("inf")
    segments = [PrefillSegment(1, 3, 2, 3), PrefillSegment(4, 2, 6, 7)]
    places = torch.tensor([4]), torch.tensor([5])
    recurrence = PooledRecurrence(states, *places, segments, caches)

    model.hidden(torch.arange(6), torch.arange(6), recurrence)

    finite = recurrence.finite_rows().tolist()
    assert not finite[0] and not finite[1]
    assert finite[4:] == [True, True]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("place", [0, 67])
def test_an_infinite_number_in_a_window_is_reported(part: int, place: int) -> None:
    model = prepare(make_decoder(**FAMILIES["window"]), "int8")
    assert isinstance(model, CompiledDecoder)
    spec = model.config.state
    states, caches = torch.zeros(spec.state_shape(8)), torch.zeros(spec.cache_shape(8))
    # Of a decode and of a prompt that goes on, at positions where everything is seen.
    caches[1, [0, 4], 2, part, place, 3] = float("inf")
    segments = [PrefillSegment(2, 3, 4, 5), PrefillSegment(5, 2, 6, 7)]
    places = torch.tensor([0, 2]), torch.tensor([1, 3])
    recurrence = PooledRecurrence(states, *places, segments, caches)

    model.hidden(torch.arange(7), torch.tensor([90, 90, 90, 91, 92, 90, 91]), recurrence)

    finite = recurrence.finite_rows().tolist()
    assert not finite[0] and not finite[2]
    assert finite[1] and finite[5:] == [True, True]


@pytest.mark.parametrize(("name", "num_left"), [("gpt_neox", 0), ("gpt_neox", 3), ("window", 0)])
def test_a_decode_has_the_same_bits_among_so_many_that_states_go_past_the_caches(
    name: str, num_left: int
) -> None:
    model = prepare(make_decoder(**FAMILIES[name]), "int8")
    assert isinstance(model, CompiledDecoder)
    spec, rows = model.config.state, 300
    store = torch.rand(spec.pending_shape(rows, 3))
    counts = torch.full((rows,), num_left)
    assert 2 * rows * spec.num_bytes > 8 * 2**20
    generator = torch.Generator().manual_seed(0)
    together = torch.rand(spec.state_shape(2 * rows), generator=generator)
    caches = torch.rand(spec.cache_shape(2 * rows), generator=generator)
    alone, caches_alone = together.clone(), caches.clone()
    ids = torch.arange(rows)
    places = torch.arange(2 * rows).reshape(rows, 2).T.contiguous()

    pending = PendingTokens(store, ids, counts)
    recurrence = PooledRecurrence(together, *places, (), caches, pending)
    hidden = model.hidden(ids, ids, recurrence)

    for row in (0, 7, rows - 1):
        one = slice(row, row + 1)
        pending = PendingTokens(store, ids[one], counts[one])
        its_places = places[:, one].contiguous()
        recurrence = PooledRecurrence(alone, *its_places, (), caches_alone, pending)
        assert torch.equal(model.hidden(ids[one], ids[one], recurrence)[0], hidden[row])
        assert torch.equal(alone[:, 2 * row + 1], together[:, 2 * row + 1])
        assert torch.equal(caches_alone[:, 2 * row + 1], caches[:, 2 * row + 1])


@pytest.mark.parametrize("name", ["gpt_neox", "window", "wide-sinks"])
def test_a_decode_that_is_repeated_from_the_same_state_has_the_same_bits(name: str) -> None:
    """A step that failed is run again, whether or not it left its token pending."""
    model = prepare(make_decoder(**FAMILIES[name]), "int8")
    assert isinstance(model, CompiledDecoder)
    spec = model.config.state
    states, caches = torch.rand(spec.state_shape(2)), torch.rand(spec.cache_shape(2))
    store = torch.rand(spec.pending_shape(1, 3))
    zero = torch.tensor([0])
    # The second one is a sink, and at the last ones a token leaves the window.
    for position, num_left, target in ((9, 0, 0), (2, 2, 0), (90, 2, 0), (91, 3, 1)):
        pending = PendingTokens(store, zero, torch.tensor([num_left]))
        outcomes = []
        for _ in range(2):
            places = zero, torch.tensor([target])
            recurrence = PooledRecurrence(states, *places, (), caches, pending)
            hidden = model.hidden(torch.tensor([5]), torch.tensor([position]), recurrence)
            outcomes.append((hidden, states.clone(), caches.clone(), store.clone()))
        for first, second in zip(*outcomes, strict=True):
            assert torch.equal(first, second)


def test_a_pending_token_that_is_not_finite_is_reported_by_its_row() -> None:
    model = prepare(make_decoder(), "int8")
    assert isinstance(model, CompiledDecoder)
    spec = model.config.state
    states = torch.rand(spec.state_shape(4))
    store = torch.rand(spec.pending_shape(2, 3))
    store[0, 1, 0, 1, -1] = float("inf")
    rows = torch.tensor([0, 2])
    pending = PendingTokens(store, torch.tensor([0, 1]), torch.tensor([2, 2]))
    for target in (rows, rows + 1):
        recurrence = PooledRecurrence(states, rows, target, pending=pending)
        model.hidden(torch.tensor([5, 6]), torch.tensor([9, 9]), recurrence)
        assert recurrence.finite_rows().tolist() == [True, False]


@pytest.mark.parametrize("vocab_size", [384, 387])
@pytest.mark.parametrize("weight_format", TOLERANCE)
@pytest.mark.parametrize("target", targets())
def test_the_likeliest_tokens_are_found_where_the_logits_are_made(
    target: str, weight_format: WeightFormat, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, target)
    model = prepare(make_decoder(vocab_size=vocab_size), weight_format)
    assert isinstance(model, CompiledDecoder)
    hidden = torch.randn(70, 64, generator=torch.Generator().manual_seed(3))
    hidden[4, 9], hidden[6, 63] = float("nan"), float("inf")
    hidden[8] = 0.0  # All logits are equal.
    masks_of = [
        None,
        TokenMask.of(range(0, vocab_size, 3), vocab_size),
        TokenMask.of([*range(64, 128), vocab_size - 1], vocab_size),
        TokenMask.of_all(vocab_size),
    ]
    for rows in ([5], [8, 4, 6, 69], list(range(70))):
        temperatures = [0.0 if row % 3 else 0.5 + row for row in rows]
        masks = [masks_of[i % len(masks_of)] for i in range(len(rows))]
        logits, (is_finite, likeliest, known) = model.chosen_logits(
            hidden, rows, masks, temperatures
        )

        expected = model.logits(hidden[rows])
        assert torch.equal(logits, expected) or not all(is_finite)
        assert is_finite == expected.isfinite().all(dim=1).tolist()
        for place, (ok, token_id) in enumerate(zip(is_finite, likeliest, strict=True)):
            if ok:
                assert torch.equal(logits[place], expected[place])
                [allowed] = let_in(expected[place : place + 1].double(), masks[place : place + 1])
                assert token_id == int(allowed.numpy().argmax())
                assert known is not None and known.largest_and_mass is not None
                largest, mass = known.largest_and_mass[:, place]
                panels = allowed.split(64)
                assert largest.tolist() == [panel.max() for panel in panels]
                if temperature := temperatures[place]:
                    masses = [float(((p - p.max()) / temperature).exp().sum()) for p in panels]
                    masses = [0.0 if math.isnan(m) else m for m in masses]  # None may come.
                    assert mass.tolist() == pytest.approx(masses, rel=1e-5)


def test_a_hidden_state_that_is_not_finite_is_reported_by_its_row() -> None:
    model = make_decoder()
    model.final_norm.bias.data[7] = float("inf")
    compiled = prepare(model, "int8")
    assert isinstance(compiled, CompiledDecoder)
    states = torch.rand(compiled.config.state.state_shape(2))
    recurrence = PooledRecurrence(states, torch.tensor([0]), torch.tensor([1]))

    compiled.hidden(torch.tensor([5]), torch.tensor([9]), recurrence)

    assert recurrence.finite_rows().tolist() == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_embedding_is_read_as_it_is_stored(dtype: torch.dtype) -> None:
    model = make_decoder()
    table = model.embed_tokens.weight.data
    table[7, :3] = torch.tensor(
        [3e-8, -6e-5, 65504.0]
    )  # Subnormal in half precision, and its largest.
    model.embed_tokens.weight.data = table.to(dtype)
    stored = model.embed_tokens.weight.data.clone()
    compiled = prepare(model, "float32")
    assert isinstance(compiled, CompiledDecoder)
    wide = make_decoder()
    wide.embed_tokens.weight.data = stored.float()
    expected = prepare(wide, "float32")
    assert isinstance(expected, CompiledDecoder)

    assert torch.equal(
        run(compiled, torch.arange(66), [])[0], run(expected, torch.arange(66), [])[0]
    )
