"""A panel of a run's picture: the answers to held-out questions before and after training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qs.evaluation.heldout import ALL, AnswerScore, run_scores

Axes = Any  # matplotlib's, which may be absent
SMALL = 8  # points


def read_answers(run: Path) -> dict[str, AnswerScore]:
    """All answers of held-out text "before" and "after" training; empty where none are known.

    Raises:
        ValueError: the results are damaged.
    """
    scores = zip(("before", "after"), run_scores(run), strict=True)
    return {
        label: answers
        for label, score in scores
        for answers in (score.answers if score else ())
        if answers.kind == ALL
    }


def draw_answers(
    axes: Sequence[Axes], answers: Mapping[str, AnswerScore], colors: tuple[str, str], thinking: str
) -> None:
    """Gold answer probability, a group of bars for each of `answers`, in a panel beside `axes`.

    The first color is that without thinking, the second with it, if it was measured; `thinking` is
    what that is called.
    """
    ax, names = _beside(axes), (f"without {thinking}", "with")
    sides = [(colors[0], [(a.gold_base, a.gold_base_interval) for a in answers.values()])]
    if all(a.gold_mix is not None for a in answers.values()):
        sides.append((colors[1], [(a.gold_mix, a.gold_mix_interval) for a in answers.values()]))
    width = 0.8 / len(sides)
    for i, (color, measured) in enumerate(sides):
        x = np.arange(len(answers)) + (i - (len(sides) - 1) / 2) * width
        gold, intervals = np.array(measured, float).T
        style = {"color": color, "yerr": np.nan_to_num(intervals), "capsize": 2}
        drawn = ax.bar(x, gold, width, label=names[i], **style)
        ax.bar_label(drawn, fmt="%.2f", padding=3, fontsize=SMALL)
    ax.set_title("gold answer\nprobability, 95 %")
    ax.set_xticks(range(len(answers)), list(answers))
    ax.set_ylim(0, 1.3)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(loc="upper center", fontsize=SMALL)


def _beside(axes: Sequence[Axes]) -> Axes:
    """A panel to the right of panels that stand one below the other."""
    heights = axes[0].get_gridspec().get_height_ratios()
    grid = axes[0].figure.add_gridspec(len(axes), 2, width_ratios=(3, 1), height_ratios=heights)
    for i, ax in enumerate(axes):
        ax.set_subplotspec(grid[i, 0])
    return axes[0].figure.add_subplot(grid[:, 1])
