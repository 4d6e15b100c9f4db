"""transformers as a peer: the vanilla parent with random weights and its dynamic cache.

Speaks like `llama_worker.py`. What is timed is `generate`, greedy, from a cache that has
the prompt.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM

UNIT_BATCH = 512


class Parent:
    """The model, and the cache of the last job."""

    def __init__(self, shape: dict[str, Any]) -> None:
        torch.set_num_threads(shape["threads"])
        config = GPTNeoXConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["hidden_size"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            intermediate_size=shape["intermediate_size"],
            max_position_embeddings=shape["context"],
        )
        self.device = torch.device(shape["device"])
        model = GPTNeoXForCausalLM(config).to(getattr(torch, shape["dtype"]))
        self.model = model.to(self.device).eval()
        self.cache = DynamicCache(config=config)
        self.config = config
        self.key: tuple[int, int] | None = None

    def now(self) -> float:
        """Seconds on a clock, read when the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def prompt(self, length: int) -> None:
        self.cache = DynamicCache(config=self.config)
        ids = torch.arange(length, device=self.device)[None] * 7919 % 50_000
        for chunk in torch.split(ids, UNIT_BATCH, dim=1):
            self.model(chunk, past_key_values=self.cache, logits_to_keep=1)

    def prefill(self, length: int) -> float:
        start = self.now()
        self.prompt(length)
        self.key = None
        return self.now() - start

    def decode(self, batch: int, position: int, steps: int) -> float:
        """Seconds per step at a position."""
        if self.key != (batch, position):
            self.prompt(position)
            self.cache.batch_repeat_interleave(batch)
            self.key = (batch, position)
        ids = torch.ones(batch, position + 1, dtype=torch.int64, device=self.device)
        start = self.now()
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self.cache,
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        seconds = (self.now() - start) / steps
        self.cache.crop(-steps)
        return seconds


def main() -> None:
    with torch.inference_mode():
        parent = Parent(json.loads(sys.argv[1]))
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            run = parent.prefill if job.pop("kind") == "prefill" else parent.decode
            print(json.dumps(run(**job)), flush=True)


if __name__ == "__main__":
    main()
