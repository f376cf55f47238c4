"""How many floating-point operations a training step takes, phase by phase, by a formula."""

from __future__ import annotations

from qs.config import Config
from qs.model.config import ModelConfig


def operations(
    config: Config, shape: ModelConfig, recompute: bool = False, parts: int = 1
) -> dict[str, float]:
    """Operations of a step: 2 a parameter and slot, 6 with gradient, 8 where layers are recomputed.

    Attention counts a product for every slot and the text that it could see, causal or not.

    Args:
        config: rows, thoughts and objective.
        shape: of the model.
        recompute: whether the backward pass computes every layer once more.
        parts: of a row's anchors; the text is read with each.
    """
    thought, T, rows = config.thinking, config.run.seq, config.run.batch
    c, m, n = shape, thought.ahead, thought.thoughts
    layer = c.dim * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.dim * c.hidden_dim
    P, head = c.layers * layer, c.vocab_size * c.dim
    attend = 4 * c.layers * c.heads * c.head_dim
    branches = thought.anchor_count(T) * thought.samples if config.run.thinks else 0
    slots, sampled = branches * (n + m + 1), branches * n * config.sampled
    seen = parts * T * T + slots * (T + n + m + 1)
    passes = 4 if recompute else 3  # forward, and a backward of twice that
    counted = {
        "prefill": (2 * P * T + attend * T * T) * config.sampled,
        "sample": sampled * (2 * (P + head) + attend * (T + n)),
        "score": passes * (2 * P * (parts * T + slots) + attend * seen),
        "losses": 6 * head * (parts * T + branches * (n + m)),
    }
    return {phase: rows * count for phase, count in counted.items()}
