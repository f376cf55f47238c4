"""Rotary scaling of Llama 3.1: its numbers, and what checkpoints call them."""

from dataclasses import dataclass

LARGEST_NUMBER = 1e30  # of a model's file that is no size: float32 holds it
SCALING = {  # fields of RopeScaling in `rope_scaling` or `rope_parameters`
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 slows rotation down for longer rows (`rope_type` llama3).

    Attributes:
        factor: by which a pair is slowed that turns fewer than `low` times in
            `original_positions`; one that turns more than `high` times is left, between is between.

    Raises:
        ValueError: a value is no number above 0, or `low` is not below `high`.

    Source: The Llama 3 Herd of Models (arXiv:2407.21783), Meta's `apply_scaling`.
    """

    factor: float
    low: float
    high: float
    original_positions: int

    def __post_init__(self) -> None:
        values = vars(self).values()
        numbers = all(type(v) in (int, float) and 0 < v <= LARGEST_NUMBER for v in values)
        if not numbers or self.low >= self.high:
            raise ValueError(
                f"expected numbers above 0, at most {LARGEST_NUMBER:g}, and {SCALING['low']} below "
                f"{SCALING['high']}, got {self}"
            )
