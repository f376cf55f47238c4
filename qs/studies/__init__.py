"""What a sceptic asks for: other explanations of a gain, trained and measured; models side by side.

Read controls (what is compared, and the row that says it), control_runs, compare, star_rounds,
plots. Nothing else imports this room.
"""

from qs.studies.compare import compare_models
from qs.studies.control_runs import run_controls
from qs.studies.controls import (
    INTERVENTIONS,
    Baseline,
    Control,
    ControlRow,
    Intervention,
    baselines,
)
from qs.studies.plots import draw_rounds, draw_run
from qs.studies.star_rounds import Arm, read_arms, rounds_table

__all__ = [
    "INTERVENTIONS",
    "Arm",
    "Baseline",
    "Control",
    "ControlRow",
    "Intervention",
    "baselines",
    "compare_models",
    "draw_rounds",
    "draw_run",
    "read_arms",
    "rounds_table",
    "run_controls",
]
