"""What is sent: lengths, texts, prefixes and turns."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from clients.loadtest.errors import OptionError
from clients.loadtest.lengths import parse_length
from clients.loadtest.text import TokenScale, common_words, measure_scale, read_text
from clients.loadtest.workloads import Workload, WorkloadOptions, workload_options


def sample(spec: str, num: int = 20_000) -> np.ndarray:
    rng, length = Random(1), parse_length(spec)
    return np.array([length.sample(rng) for _ in range(num)])


def make(seed: int = 0, scale: TokenScale | None = None, **options: str | int) -> Workload:
    chosen = workload_options("single", **options)
    return Workload(chosen, common_words(), scale or TokenScale(1.0), seed)


def test_a_fixed_length_is_always_the_same() -> None:
    assert set(sample("128")) == {128}


def test_uniform_lengths_reach_both_ends_evenly() -> None:
    lengths = sample("uniform:10,14")
    assert np.bincount(lengths)[10:] / len(lengths) == pytest.approx([0.2] * 5, abs=0.01)


def test_normal_lengths_have_their_mean_and_deviation() -> None:
    lengths = sample("normal:200,20")
    assert lengths.mean() == pytest.approx(200, rel=0.01)
    assert lengths.std() == pytest.approx(20, rel=0.03)


def test_lognormal_lengths_have_their_median_and_spread() -> None:
    lengths = sample("lognormal:128,0.5")
    assert np.median(lengths) == pytest.approx(128, rel=0.02)
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.03)


def test_no_length_is_below_1() -> None:
    assert sample("normal:2,10").min() == 1


@pytest.mark.parametrize(
    "spec", ["", "0", "-5", "many", "uniform:5", "uniform:9,3", "normal:5,-1", "fixed:inf"]
)
def test_a_length_that_makes_no_sense_is_refused(spec: str) -> None:
    with pytest.raises(OptionError):
        parse_length(spec)


def test_a_seed_gives_the_same_conversations_in_any_order() -> None:
    one, other = make(seed=5, turns="uniform:1,5"), make(seed=5, turns="uniform:1,5")
    forward = [one.conversation(i) for i in range(20)]
    assert [other.conversation(i) for i in reversed(range(20))] == forward[::-1]
    assert make(seed=6, turns="uniform:1,5").conversation(0) != forward[0]


def test_no_two_prompts_begin_alike_unless_they_share_a_prefix() -> None:
    texts = [make().conversation(i).turns[0].text for i in range(200)]
    assert len({text[:40] for text in texts}) == 200


def test_conversations_share_their_prefixes() -> None:
    workload = make(shared_prefix_tokens=100, num_prefixes=3)
    conversations = [workload.conversation(i) for i in range(100)]
    prefixes = {conversation.prefix for conversation in conversations}
    assert len(prefixes) == 3
    assert all(len(prefix.split()) == 101 for prefix in prefixes)
    assert len({conversation.turns[0].text for conversation in conversations}) == 100


def test_prompts_have_the_tokens_that_were_asked_for() -> None:
    scale = TokenScale(tokens_per_word=2.0, overhead=10)
    text = make(scale=scale, prompt_tokens="110").conversation(0).turns[0].text
    assert 2 * len(text.split()) + 10 == 110


def test_the_scale_of_words_to_tokens_is_measured() -> None:
    scale = measure_scale(lambda text: 3 * len(text.split()) + 7, common_words())
    assert (scale.tokens_per_word, scale.overhead, scale.is_measured) == (3.0, 7.0, True)


def test_without_usage_the_scale_is_assumed() -> None:
    assert not measure_scale(lambda text: None, common_words()).is_measured


def test_prompts_are_cut_from_a_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("one two three\nfour\n\nfive six\r\n\r\nseven")
    words = read_text(file)
    assert words.paragraphs == ("one two three four", "five six", "seven")
    order = "one two three four five six seven"
    for seed in range(20):
        assert words.take(10, Random(seed)) in " ".join([order] * 3)


def test_whole_paragraphs_are_sent_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("a b c\n\nd e")
    options = WorkloadOptions(prompt_tokens="paragraphs")
    workload = Workload(options, read_text(file), TokenScale(), 0)
    sent = {workload.conversation(i).turns[0].text for i in range(50)}
    assert sent == {"a b c", "d e"}


def test_paragraphs_need_a_text(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--text"):
        make(prompt_tokens="paragraphs")
    for content in (None, b"", b"\xff"):
        file = tmp_path / "text"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(OptionError):
            read_text(file)


def test_what_is_given_goes_before_the_preset() -> None:
    options = workload_options("multi-turn", turns="3", prompt_tokens=None)
    assert (options.turns, options.prompt_tokens) == ("3", "lognormal:48,0.5")
    with pytest.raises(OptionError, match="long-context"):
        workload_options("everything")
