"""The presets: which linear attention takes the place of a parent's softmax attention."""

from dijiang_runtime.models.config import AttentionConfig, Preset


def attention_config(preset: Preset, head_dim: int) -> AttentionConfig:
    """Return the attention of a preset for heads of `head_dim`.

    * `official`: bit-faithful to the authors' code. One frozen map for the layer, m = d, group norm
      with as many groups as a head has dimensions, a gate without bias.
    * `dijiang`: a learned map for every key/value head with a negated half, m = 2 d, division by
      the accumulated feature mass, a gate that can start neutral. Trains to a much lower loss.
    * `dijiang+window`: the same for all but the last 64 tokens and the first 4, which keep the
      parent's softmax. Starts close to its parent, and can look things up in its window.
    """
    if preset == "official":
        return AttentionConfig(num_features=head_dim, num_groups=head_dim)
    has_window = preset == "dijiang+window"
    return AttentionConfig(
        num_features=2 * head_dim,
        negated_half=True,
        per_head=True,
        readout="normalizer",
        gate_bias=True,
        window=64 if has_window else 0,
        sinks=4 if has_window else 0,
    )
