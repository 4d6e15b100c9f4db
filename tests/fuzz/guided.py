"""Look for bytes that break a promise, guided by coverage: `python -m tests.fuzz.guided bodies`.

atheris measures which branches an input takes and goes on from those that take new ones. What it
finds is kept in a file, and belongs into `FOUND` of `test_targets.py`.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed. On Linux: pip install -c constraints.txt -e '.[fuzz]'")

with atheris.instrument_imports(include=["dijiang_runtime", "server"]):
    from tests.fuzz.targets import TARGETS

MAX_BYTES = 8192
MAX_SECONDS = 20
"""Of one input: what takes longer is a finding."""


def dictionary_line(word: str) -> str:
    """A word as libFuzzer's dictionaries spell it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, help="a folder of inputs, to go on with later")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    target = TARGETS[options.target]
    with tempfile.TemporaryDirectory() as temporary:
        folder, words = Path(temporary, "seeds"), Path(temporary, "words")
        folder.mkdir()
        for number, seed in enumerate(target.seeds()):
            (folder / str(number)).write_bytes(seed)
        words.write_text("".join(map(dictionary_line, sorted(target.words()))), encoding="ascii")
        flags = [f"-max_total_time={options.seconds}", f"-timeout={MAX_SECONDS}"]
        flags += [
            f"-max_len={MAX_BYTES}",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-dict={words}",
        ]
        if options.corpus is not None:
            options.corpus.mkdir(parents=True, exist_ok=True)
            flags.append(str(options.corpus))
        atheris.Setup([sys.argv[0], *flags, str(folder)], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
