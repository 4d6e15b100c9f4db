"""The embedded model is what its card says, and writes stories."""

import json
import re
from pathlib import Path

import pytest

import dijiang_runtime.demo
from dijiang_runtime.config import EngineConfig
from dijiang_runtime.conversion.evaluate import EvaluateOptions, evaluate
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.loader import load_config
from dijiang_runtime.request import SamplingParams
from dijiang_runtime.tokenizer import Tokenizer

DEMO = Path(dijiang_runtime.demo.__path__[0])
MAX_BYTES = 8_000_000

# Written for this test, in the manner of the training text.
STORY = """\
Once upon a time, there was a little girl named Lily. She had a small red ball. One day, Lily went
to the park with her mom. She saw a big dog. The dog wanted to play with the ball. Lily was happy
and threw the ball to the dog. The dog ran and ran. Then it gave the ball back to Lily. Lily and the
dog were now good friends. They played all day and had a lot of fun.
"""

# The words of the stories are few. A model that has not learnt English hardly ever hits them.
COMMON_WORDS = frozenset(
    """a about after all always and animals are at away back ball be bed bear better big bird boy
    but by came can car cat could day did didn't dog door down eat every everyone fell felt for
    found friend friends from fun gave girl go good got had happily happy hard he heard help her him
    his home house hug i in inside into is it it's jack kind knew laughed learned liked lily little
    lived look looked lots loved made man many max mia mom mommy more named never new nice no not of
    on once one other out outside park pick play played playing put ran red run sad safe said sam
    sara saw say scared she sky small smiled so some something special spot started story sun take
    talk that the their them then there they thing things think this time timmy to together told tom
    too took toy toys tree tried upon very walk wanted was water we went were what when where who
    with world would yes you your""".split()
)


@pytest.fixture(scope="module")
def card() -> str:
    return (DEMO / "README.md").read_text(encoding="utf-8")


def test_the_folder_is_small_and_complete(card: str) -> None:
    names = {path.name for path in DEMO.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) < MAX_BYTES
    for heading in ("Provenance", "Licence", "Losses"):
        assert f"## {heading}" in card
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", card)


def test_the_loss_on_a_story_is_the_one_in_the_card(card: str, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY.replace("\n", " ").strip() + "\n")
    stated = re.search(r"test's story \| ([\d.]+)", card)
    assert stated is not None
    result = evaluate(DEMO, [path], EvaluateOptions(context=256))
    assert result.loss == pytest.approx(float(stated[1]), abs=0.002)


def test_the_tokenizer_fits_the_model() -> None:
    config, tokenizer = load_config(DEMO), Tokenizer.load(DEMO)
    assert tokenizer.vocab_size == config.vocab_size
    assert tokenizer.decode(tokenizer.encode(STORY)) == STORY
    assert set(config.eos_token_ids) == set(tokenizer.eos_ids)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_writes_english_stories(seed: int) -> None:
    engine = Engine.from_config(EngineConfig(model=DEMO, device="cpu", max_slots=1))
    defaults = json.loads((DEMO / "generation_config.json").read_text())
    sampling = SamplingParams(
        temperature=defaults["temperature"], top_p=defaults["top_p"], max_tokens=120, seed=seed
    )
    [output] = engine.generate(["Once upon a time, there was"], sampling)
    words = re.findall(r"[a-z']+", output.text.lower())
    assert len(words) > 20
    assert sum(word in COMMON_WORDS for word in words) > 0.6 * len(words), output.text
    assert "." in output.text
