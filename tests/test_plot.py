"""plot: what is drawn is what was measured, the same bytes each time, and labels do not overlap."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs import plot
from qs.config import PRESETS
from qs.controls import OWN, Row
from qs.plot import draw, nll_range, read_curves, read_steps, smooth, spread
from qs.rivals import LENGTH, SAME, TRAINED
from qs.tasks import Decile

EDGES = [0.0, 0.0004, 0.003, 0.012, 0.05, 0.18, 0.52, 1.1, 2.2, 3.9, 12.84]
DECILES = [
    Decile(low, high, tokens=100 + i, gain=0.01 * (i - 3), interval=0.02 if i else None)
    for i, (low, high) in enumerate(itertools.pairwise(EDGES))
]
GOLD = {0: 0.13, 1: 0.15, 2: 0.2, 4: 0.75, 5: 0.92, 8: 0.9, 12: 0.85}
finite = st.floats(-1e3, 1e3)


def row(name, gold, seeds=3):
    return Row(name, seeds, gold, 0.01, (gold - 0.04, gold + 0.03), 1.0, None, None, 1.1, None, 0.5)


def write_log(run, steps):
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [{"torch": "2"}, *steps]))


def write_controls(run, tables):
    named = {title: [dataclasses.asdict(r) for r in rows] for title, rows in tables.items()}
    (run / "controls.json").write_text(json.dumps({"command": "", "tables": named}))


def make(run, objective="quiet", steps=90):
    """A run folder that trained, with n = 5, and was compared if it thinks."""
    run.mkdir()
    preset = PRESETS["tiny"]
    config = dataclasses.replace(
        preset,
        thought=dataclasses.replace(preset.thought, thoughts=5),
        run=dataclasses.replace(preset.run, objective=objective),
    )
    (run / "config.json").write_text(json.dumps(config.to_json()))
    logged = [{"step": s, "loss": 1.0, "nll_base": 1.3 + 0.05 * np.sin(s)} for s in range(1, steps)]
    if objective != "plain":
        for record in logged:
            record |= {"nll_talk": 1.2, "reward": record["step"] / 200, "weight_mean": 0.3}
    write_log(run, logged)
    if objective == "quiet":
        trained = [row(OWN, GOLD[5]), row("plain training", 0.132), row("pause tokens", 0.14)]
        trained += [row(f"n = {n}", gold) for n, gold in GOLD.items() if n != 5]
        trained += [row("m = 4", 0.5)]
        evaluated = [row(f"n = {n}", gold * 0.9) for n, gold in GOLD.items()]
        write_controls(run, {SAME: [row(OWN, 0.1)], LENGTH: evaluated, TRAINED: trained})
    return run


def names(paths):
    return [path.name for path in paths]


def figures(run, monkeypatch):
    """The figures that are drawn of a run, before they become files."""
    module = pytest.importorskip("matplotlib.figure")
    kept = []
    monkeypatch.setattr(module.Figure, "savefig", lambda self, path, **_: kept.append(self))
    draw(run, DECILES)
    return kept[::2]  # each is saved as PNG and as SVG


def lines_of(ax):
    return [np.stack(line.get_data(), 1).tolist() for line in ax.lines]


def boxes_of(ax):
    """Where the title, the labels and the numbers of both axes are, in pixels."""
    ax.figure.draw_without_rendering()
    axes = [t for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels() if t.get_text()]
    found = [*ax.texts, *ax.figure.texts, ax.xaxis.label, *axes]
    found += [ax.title, ax._left_title, ax.yaxis.get_offset_text()]
    return {text.get_text(): text.get_window_extent() for text in found if text.get_text()}
