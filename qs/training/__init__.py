"""Training: one optimiser step and a run of many, in one process or several.

Read step (one step), then trainer (steps until done or stopped), checkpoint and distributed.
"""

from qs.training.step import make_optimizer, train_step
from qs.training.trainer import Trainer

__all__ = ["Trainer", "make_optimizer", "train_step"]
