"""llama.cpp as a peer: run by a Python that has `llama_cpp` and `gguf`, not by this package's.

Arguments: a JSON object with the shape (`peers.py`). Every line read is a job in JSON, every line
written its seconds.
"""

import ctypes
import json
import os
import sys
import tempfile
import time
from typing import Any

import gguf  # type: ignore[import-not-found, unused-ignore]
import llama_cpp  # type: ignore[import-not-found, unused-ignore]
import numpy as np

UNIT_BATCH = 512


def write_model(shape: dict[str, Any], path: str) -> None:
    """Write the vanilla GPT-NeoX parent with random weights, matrices in q8_0."""
    writer = gguf.GGUFWriter(path, "gptneox")
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    vocab, layers = shape["vocab_size"], shape["num_layers"]
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_rope_dimension_count(shape["rotary_dim"])
    writer.add_head_count(shape["num_heads"])
    writer.add_parallel_residual(True)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * 0.02
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vectors(name: str, size: int, *, norm: bool) -> None:
        if norm:
            writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
        writer.add_tensor(f"{name}.bias", random.standard_normal(size, dtype=np.float32) * 0.02)

    matrix("token_embd.weight", vocab, hidden)
    matrix("output.weight", vocab, hidden)
    vectors("output_norm", hidden, norm=True)
    for layer in range(layers):
        place = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            vectors(place + norm, hidden, norm=True)
        for name, rows, columns in (
            ("attn_qkv", 3 * hidden, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"{place}{name}.weight", rows, columns)
            vectors(place + name, rows, norm=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """A model, and a context for as many sequences of one length as a job asks for."""

    def __init__(self, path: str, threads: int) -> None:
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        assert self.model, "llama.cpp did not load the model"
        self.threads = threads
        self.context: Any = None
        self.key: tuple[int, int] | None = None

    def reset(self, batch: int, position: int) -> None:
        """A context for such sequences. The prompt is run once and copied to the others."""
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = batch * (position + 64 - position % 64 + 64)
        params.n_batch = params.n_ubatch = UNIT_BATCH
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp did not make a context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.key = (batch, position)

    def run(self, tokens: list[tuple[int, int]], wants_all: bool) -> None:
        """Run tokens, given as sequence and position."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (sequence, position) in enumerate(tokens):
            batch.token[i] = (position * 7919) % 50_000
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_all or i == len(tokens) - 1
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, f"llama_decode: {status}"

    def prompt(self, length: int) -> float:
        start = time.perf_counter()
        for first in range(0, length, UNIT_BATCH):
            stop = min(first + UNIT_BATCH, length)
            self.run([(0, position) for position in range(first, stop)], False)
        return time.perf_counter() - start

    def prefill(self, length: int) -> float:
        self.reset(1, length)
        return self.prompt(length)

    def decode(self, batch: int, position: int, steps: int) -> float:
        """Seconds per step at a position."""
        if self.key != (batch, position):
            self.reset(batch, position)
            self.prompt(position)
            for other in range(1, batch):
                llama_cpp.llama_memory_seq_cp(self.memory, 0, other, 0, -1)
        start = time.perf_counter()
        for step in range(steps):
            self.run([(sequence, position + step) for sequence in range(batch)], True)
            for row in range(batch):  # Greedy, as ours.
                logits = llama_cpp.llama_get_logits_ith(self.context, row)
                np.ctypeslib.as_array(logits, (50_304,)).argmax()
        seconds = (time.perf_counter() - start) / steps
        for sequence in range(batch):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, position, -1)
        return seconds


def silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's log goes nowhere."""


def main() -> None:
    shape = json.loads(sys.argv[1])
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(silent)
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "parent.gguf")
        write_model(shape, path)
        llama = Llama(path, shape["threads"])
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            kind = job.pop("kind")
            run = llama.prefill if kind == "prefill" else llama.decode
            print(json.dumps(run(**job)), flush=True)


if __name__ == "__main__":
    main()
