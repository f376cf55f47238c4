"""What a sceptic asks for: other explanations of a gain, trained and measured; models side by side.

Read controls (what is compared, and the rows that say it), control_runs (training and measuring
it), compare, star_rounds, plots. Nothing else imports this room.
"""

from qs.studies.compare import compare_models
from qs.studies.control_runs import run_controls
from qs.studies.controls import INTERVENTIONS, baselines
from qs.studies.plots import draw_rounds, draw_run
from qs.studies.star_rounds import arm_table, read_arms

__all__ = [
    "INTERVENTIONS",
    "arm_table",
    "baselines",
    "compare_models",
    "draw_rounds",
    "draw_run",
    "read_arms",
    "run_controls",
]
