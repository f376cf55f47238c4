"""Quiet-STaR (arXiv:2403.09629): the first room to read.

algorithm (algorithm 1, stage by stage), masks (who sees whom), sampler, mixer, losses, attention;
then terms (what a step computed), parts (what can be one's own; checks, stored), ends (thoughts
that end themselves), anchors (who thinks), distil, kernels (less memory traffic on a CPU) and load
(a checkpoint or a run -> a model that is ready).
"""

from qs.quietstar.algorithm import PAUSE, QuietStar
from qs.quietstar.load import Opened, choose_placement, load, open_model
from qs.quietstar.losses import advantages, reinforce, rewards
from qs.quietstar.masks import Place
from qs.quietstar.mixer import MixingHead
from qs.quietstar.parts import Parts
from qs.quietstar.terms import Step

__all__ = [
    "PAUSE",
    "MixingHead",
    "Opened",
    "Parts",
    "Place",
    "QuietStar",
    "Step",
    "advantages",
    "choose_placement",
    "load",
    "open_model",
    "reinforce",
    "rewards",
]
