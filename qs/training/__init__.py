"""Training: one optimiser step and a run of many, in one process or several.

Read step (one step), then trainer (steps until done or stopped), checkpoint and distributed.
"""

from qs.training.optimizer import make_optimizer
from qs.training.step import train_step
from qs.training.trainer import Trainer

__all__ = ["Trainer", "make_optimizer", "train_step"]
