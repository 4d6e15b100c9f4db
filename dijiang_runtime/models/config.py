"""The description of a DiJiang model: what `config.json` holds under `model_type: dijiang`.

Knows no torch, so that `dijiang inspect` and the API process can read it cheaply.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import msgspec

from dijiang_runtime.errors import UnsupportedModelError

MODEL_TYPE = "dijiang"

MAX_NUMBER = 2**31
"""Above all that a config can sensibly hold, and below what overflows."""

Family = Literal["gpt_neox", "llama", "opt"]
Preset = Literal["official", "dijiang", "dijiang+window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """The linear attention that stands where the parent had softmax attention."""

    feature_map: Literal["softmax", "weighted_exp"] = "softmax"
    """`softmax`: softmax over features of x P, the authors' code. `weighted_exp`: D * exp(x P),
    the paper's equation 12."""
    num_features: int
    """m, the length of a feature vector and the number of rows of the state of one head."""
    negated_half: bool = False
    """Append the feature map of -x. Then P has m / 2 columns."""
    per_head: bool = False
    """One P for every key/value head; otherwise one for the layer, as in the authors' code."""
    readout: Literal["group_norm", "normalizer"] = "group_norm"
    """`group_norm` over the concatenated heads (the authors' code), or division by the
    accumulated feature mass, as in softmax attention."""
    num_groups: int = 0
    """Groups of the group norm. The authors' code uses the head size, not the number of heads."""
    gate: bool = True
    """Multiply the read-out by SiLU(x W_G)."""
    gate_bias: bool = False
    """Give the gate a bias, so that it can start neutral: SiLU(1.2785) = 1 with W_G = 0."""
    decay_tables: bool = False
    """Trained per-position tables D1, D2 of the authors' checkpoints instead of one decay a head.
    Positions beyond the tables are refused."""
    window: int = 0
    """Tokens that are attended to by softmax, as in the parent, the token itself included; only
    those before them are linear. 0: everything is linear. Needs the `normalizer` read-out."""
    sinks: int = 0
    """First tokens of a sequence that stay in the softmax for good."""

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values are kept: sinks, the window, and the one that left it last.

        So a step writes its token where it reads none: it may be repeated, and a state that is not
        copied stays as good as one that is.
        """
        return self.sinks + self.window + 1 if self.window else 0

    def __post_init__(self) -> None:
        if self.window < 0 or self.sinks < 0 or (self.sinks and not self.window):
            raise UnsupportedModelError(
                f"attention has a window of {self.window} tokens and {self.sinks} sinks; neither "
                "may be negative, and sinks need a window."
            )
        if self.window and (self.readout != "normalizer" or self.decay_tables):
            raise UnsupportedModelError(
                "attention with a window needs the normalizer read-out, and no decay tables."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama-3's frequency-dependent scaling of rotary frequencies, or plain linear scaling."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the shapes and the arithmetic of a model.

    One decoder reads this for every family; a family is a way to fill it in.
    """

    family: Family
    preset: Preset
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    """Positions the parent was trained on. A hard limit only with `learned_positions`."""
    attention: AttentionConfig

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_first: bool = True
    """Normalise before attention and MLP; False normalises the sum after each (OPT-350M)."""
    final_norm: bool = True
    parallel_residual: bool = False
    """Attention and MLP read the same residual and are added together (GPT-NeoX)."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    gated_mlp: bool = False
    """down(act(gate(x)) * up(x)), as in SwiGLU."""
    mlp_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    """RMS-normalise each head's query and key before rotation (Qwen3)."""
    out_bias: bool = True
    """Bias of the attention's output projection."""
    rotary_dim: int = 0
    """Leading dimensions of a head that are rotated, in the rotate-half layout. 0: no rotation."""
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    learned_positions: bool = False
    """Learned absolute positions, stored with OPT's offset of 2."""
    embedding_dim: int = 0
    """Width of the token embeddings where it differs from `hidden_size` (OPT-350M); 0: the same."""
    query_scale: float = 1.0
    """Factor on the projected query, bias included. OPT: head_dim ** -0.5."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())

    @property
    def state(self) -> "StateSpec":
        """The shape of one sequence's recurrent state."""
        # The normalizer is the read-out of a value that is always 1: one more column.
        extra = 1 if self.attention.readout == "normalizer" else 0
        return StateSpec(
            num_layers=self.num_layers,
            num_heads=self.num_kv_heads,
            key_dim=self.attention.num_features,
            value_dim=self.head_dim + extra,
            cache_tokens=self.attention.cache_tokens,
            head_dim=self.head_dim,
        )

    @property
    def parent_kv_cache_bytes_per_token(self) -> int:
        """What a Transformer of the same shape would keep of each token: keys and values, as
        usually served in 16 bits a number."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def position_limit(self) -> int | None:
        """Positions that exist at all, or None where the model has no such limit."""
        if self.learned_positions or self.attention.decay_tables:
            return self.max_position_embeddings
        return None

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of a model folder."""
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["DiJiangForCausalLM"],
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a `config.json` of our own.

        Raises:
            UnsupportedModelError: a key that is unknown, missing, or of another model type.
        """
        values = {key: value for key, value in data.items() if key not in _HF_KEYS}
        if data.get("model_type") != MODEL_TYPE:
            raise UnsupportedModelError(
                f"config.json has model_type {data.get('model_type')!r}, not {MODEL_TYPE!r}. "
                "Convert the model first: dijiang convert PARENT OUT."
            )
        values["attention"] = values.get("attention") or {}
        _refuse_unknown(cls, values)
        _refuse_unknown(AttentionConfig, values["attention"])
        _refuse_unknown(RopeScaling, values.get("rope_scaling") or {})
        _refuse_numbers_out_of_range(values)
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as exc:
            raise UnsupportedModelError(f"config.json: {exc}.") from exc


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One sequence's state, float32: `[num_layers, num_heads, key_dim, value_dim]`, and where there
    is a window, the keys and values in it: `[num_layers, num_heads, 2, cache_tokens, head_dim]`."""

    num_layers: int
    num_heads: int
    """Key/value heads: query heads of a group share one state."""
    key_dim: int
    value_dim: int
    cache_tokens: int = 0
    """`AttentionConfig.cache_tokens`."""
    head_dim: int = 0

    @property
    def num_bytes(self) -> int:
        """Of everything that is kept of a sequence, however long it grows."""
        of_head = self.key_dim * self.value_dim + 2 * self.cache_tokens * self.head_dim
        return 4 * self.num_layers * self.num_heads * of_head

    def state_shape(self, num_rows: int) -> tuple[int, ...]:
        """`[layers, rows, H, K, V]`"""
        return (self.num_layers, num_rows, self.num_heads, self.key_dim, self.value_dim)

    def pending_shape(self, num_slots: int, num_tokens: int) -> tuple[int, ...]:
        """`[layers, slots, H, tokens, K + d]`: features of the key and the value of so many tokens
        that a state has not taken in yet."""
        of_token = self.key_dim + self.head_dim
        return (self.num_layers, num_slots, self.num_heads, num_tokens, of_token)

    def cache_shape(self, num_rows: int) -> tuple[int, ...]:
        """`[layers, rows, H, 2, cache tokens, d]`, without elements where there is no window."""
        return (self.num_layers, num_rows, self.num_heads, 2, self.cache_tokens, self.head_dim)


_AT_LEAST_ONE = frozenset(
    {"vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"}
    | {"head_dim", "max_position_embeddings", "num_features"}
)

# What transformers adds to every config.json; it changes nothing about our arithmetic.
_HF_KEYS = frozenset(
    {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)


def _refuse_unknown(cls: type[Any], values: object) -> None:
    """Refuse keys that have no meaning. What is no object at all is refused for its type later."""
    if not isinstance(values, Mapping):
        return
    if unknown := sorted(values.keys() - {f.name for f in dataclasses.fields(cls)}):
        raise UnsupportedModelError(f"config.json has unknown keys: {', '.join(unknown)}.")


def _refuse_numbers_out_of_range(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse numbers that no size and no factor can be."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_numbers_out_of_range(value, f"{prefix}{key}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        smallest = 1 if key in _AT_LEAST_ONE else 0
        # A NaN is in no range.
        if not smallest <= value < MAX_NUMBER:
            raise UnsupportedModelError(
                f"config.json: {prefix}{key} is {value}, not from {smallest} to {MAX_NUMBER:,}."
            )
