"""The authors' trained decay tables, for comparison with their published training."""

import dataclasses

import torch

from dijiang_runtime.conversion.dijiang_model import DiJiangModel
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.trainable import TrainableModel
from dijiang_runtime.models.decoder import Decoder


def with_decay_tables(model: TrainableModel) -> DiJiangModel:
    """The model with tables D1[n] = γ^n and D2[n] = γ^-n that are trained, and so no fixed decay.

    It computes the same function. Tables that it has already are taken as they are.

    Raises:
        TrainingError: not a model of the official preset, or D2 would overflow float32.
    """
    if not isinstance(model, DiJiangModel) or model.decoder.config.preset != "official":
        raise TrainingError(
            "Only the official preset has decay tables: dijiang convert --preset official."
        )
    config = model.decoder.config
    if config.attention.decay_tables:
        return DiJiangModel(model.decoder, trains_tables=True)
    attention = dataclasses.replace(config.attention, decay_tables=True)
    decoder = Decoder(dataclasses.replace(config, attention=attention))
    state = model.decoder.state_dict()
    for name in [name for name in state if name.endswith("log_decay_rate")]:
        n = torch.arange(config.max_position_embeddings, dtype=torch.float64)
        log_d2 = state.pop(name).double().exp()[:, None] * n
        d1, d2 = (-log_d2).exp().float(), log_d2.exp().float()
        if not bool(d2.isfinite().all()):
            finite = int(d2.isfinite().all(dim=0).sum())
            raise TrainingError(
                f"The model has {config.max_position_embeddings:,} positions, but its table D2 "
                f"overflows float32 after {finite:,}: train with fixed decays."
            )
        state[name.replace("log_decay_rate", "D1")] = d1
        state[name.replace("log_decay_rate", "D2")] = d2
    decoder.load_state_dict(state, strict=True)
    return DiJiangModel(decoder, trains_tables=True)
