"""Our metrics under vLLM's names, for dashboards, autoscalers and routers that know only those."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dijiang_runtime.engine.client import EngineClient

VLLM_NAMES: Final = {
    f"dijiang_{name}": f"vllm:{name}"
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "num_preemptions",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens",
        "prompt_tokens_by_source",
        "generation_tokens",
        "request_success",
        "admission_rejections",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_prefill_kv_computed_tokens",
        "request_num_preemptions",
        "request_params_max_tokens",
        "request_params_n",
    )
} | {
    "dijiang_state_slot_usage": "vllm:kv_cache_usage_perc",
    "dijiang_iteration_tokens": "vllm:iteration_tokens_total",
}


class Export(Collector):
    """All families of a registry, and the shared ones once more under vLLM's names."""

    def __init__(self, source: CollectorRegistry, vllm_names: Mapping[str, str]) -> None:
        self._source = source
        self._vllm_names = vllm_names

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            # When a series was created is of no use, and doubles the output.
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
            if name := self._vllm_names.get(family.name):
                yield _renamed(family, name)


class CacheConfig(Collector):
    """vLLM's description of its cache, read by routers. A block of ours is a whole sequence."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        if not self._engine.is_ready:
            return
        name = "vllm:cache_config_info"
        info = Metric(name, "Always 1; the settings are the labels.", "gauge")
        labels = {
            "model_name": self._model_name,
            "engine": "0",
            "block_size": "1",
            "num_gpu_blocks": str(self._engine.info.num_slots),
        }
        info.add_sample(name, labels, 1.0)
        yield info


def _renamed(family: Metric, name: str) -> Metric:
    renamed = Metric(name, family.documentation, family.type, family.unit)
    for sample in family.samples:
        renamed.add_sample(
            name + sample.name.removeprefix(family.name),
            {**sample.labels, "engine": "0"},
            sample.value,
        )
    return renamed
