"""An `EngineConfig` to a model on a device, with as many slots as memory allows."""

import logging
import os
import time
from dataclasses import dataclass

import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.lookahead import LookAheadRunner
from dijiang_runtime.engine.messages import EngineInfo
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.resources import available_cpus, available_memory_bytes
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.packed import num_parameters
from dijiang_runtime.models.packed_folder import mapped_bytes
from dijiang_runtime.models.serving import (
    decoder_of,
    load_for_serving,
    logit_kernels,
    record_steps,
)
from dijiang_runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_DEFAULT_SLOTS = 256
UNLIMITED_MODEL_LEN = 1_048_576
"""Longest sequence of a model that has no limit of its own: a bound on what a request may ask."""

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """The parts of an engine that come from the model folder."""

    runner: ModelRunner | LookAheadRunner
    tokenizer: Tokenizer
    info: EngineInfo


def load(config: EngineConfig) -> LoadedEngine:
    """Load a model folder and allocate its states.

    Raises:
        ModelLoadError: the folder cannot be served, or not with these options.
    """
    started = time.perf_counter()
    num_threads = config.num_threads or default_num_threads()
    torch.set_num_threads(num_threads)
    device = resolve_device(config.device)
    tokenizer = Tokenizer.load(config.model)
    model, dtype = load_for_serving(config.model, device, config.dtype)
    eos_token_ids = tuple(sorted({*model.config.eos_token_ids, *tokenizer.eos_ids}))
    num_pending = model.num_pending_tokens
    # Mapped weights are no memory that the process holds, but states must leave room for them.
    mapped = mapped_bytes(config.model)
    num_slots = count_slots(config, model.config, device, num_pending, mapped)
    pool = StatePool(model.config.state, num_slots, device, num_pending)
    if config.cuda_graphs:
        model = record_steps(model, pool.states, pool.scratch)
    info = EngineInfo(
        vocab_size=model.config.vocab_size,
        max_model_len=resolve_max_model_len(config, model.config),
        max_logprobs=config.max_logprobs,
        bos_token_id=tokenizer.bos_id
        if tokenizer.bos_id is not None
        else model.config.bos_token_id,
        eos_token_ids=eos_token_ids,
        num_slots=num_slots,
        state_bytes_per_sequence=StatePool.bytes_per_slot(model.config.state, num_pending),
        state_bytes_total=pool.num_bytes,
        parent_kv_cache_bytes_per_token=model.config.parent_kv_cache_bytes_per_token,
        num_parameters=num_parameters(decoder_of(model)),
        num_layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        family=model.config.family,
        device=str(device),
        dtype=dtype,
        num_threads=num_threads,
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens,
        load_seconds=time.perf_counter() - started,
        warmup_seconds=0.0,
    )
    logger.info(
        "state memory: %.3f MiB per sequence (two buffers) x %d slots = %.1f MiB in total",
        info.state_bytes_per_sequence / _MIB,
        num_slots,
        info.state_bytes_total / _MIB,
    )
    runner = ModelRunner(model, pool, Sampler(eos_token_ids, logit_kernels(model)))
    looks_ahead = config.async_scheduling and device.type == "cuda" and not num_pending
    return LoadedEngine(LookAheadRunner(runner) if looks_ahead else runner, tokenizer, info)


def default_num_threads() -> int:
    """CPU threads of a step: all cores of the process but one, or what OMP_NUM_THREADS says.

    One core is left to the API process: a thread that waits for a core delays every product.
    """
    spare = max(1, available_cpus() - 1)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), spare) if wanted.isdigit() and int(wanted) else spare


def count_slots(
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device | None = None,
    num_pending_tokens: int = 0,
    mapped_bytes: int = 0,
) -> int:
    """How many sequences may run at once, in the memory of the device: the CPU's by default.

    Args:
        mapped_bytes: Of that memory, kept free for a file's pages.

    Raises:
        ModelLoadError: with the figures, if the states asked for do not fit.
    """
    per_slot = StatePool.bytes_per_slot(model.state, num_pending_tokens)
    if device is not None and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = max(0, available_memory_bytes() - mapped_bytes)
    budget = free // 4 if config.state_memory_bytes is None else config.state_memory_bytes
    # One more slot is scratch.
    fitting = budget // per_slot - 1
    if config.max_slots is None:
        num_slots = min(MAX_DEFAULT_SLOTS, fitting)
    else:
        num_slots = config.max_slots
        if config.state_memory_bytes is None:
            budget, fitting = free, free // per_slot - 1
    if not 1 <= num_slots <= fitting:
        raise ModelLoadError(
            f"{max(1, num_slots)} slots of {per_slot:,} bytes each, and one of scratch, do not fit "
            f"into {budget:,} bytes of state memory. Lower max_slots or raise state_memory_bytes."
        )
    return num_slots


def resolve_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """The longest prompt plus answer. Raises `ModelLoadError` if the model lacks positions."""
    limit = model.position_limit
    if config.max_model_len is None:
        return limit or UNLIMITED_MODEL_LEN
    if limit is not None and config.max_model_len > limit:
        raise ModelLoadError(
            f"max_model_len is {config.max_model_len}, but the model has only {limit} positions."
        )
    return config.max_model_len


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ModelLoadError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device is cuda, but torch sees no CUDA device.")
    return torch.device(name)
