"""Runs of STaR side by side: accuracy by group and round, one arm for runs that differ in seed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qs import files
from qs.config import Config
from qs.studies.pictures import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    Figure,
    label,
    note,
    paint,
    panels,
)

COLOURS = (BLUE, GREEN, PURPLE, VERMILION, GREY)


@dataclass(frozen=True)
class Arm:
    """Runs with the same settings and different seeds.

    Attributes:
        name: what it is, in words.
        config: of the first run.
        seeds: of the runs, in order.
        groups: names of groups of problems ("3 digits"), "all" last.
        accuracy: (runs, rounds + 1, groups) share right on held-out problems; round 0 is the
            untrained model.
        records: what each run logged of each round.
    """

    name: str
    config: Config
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    accuracy: np.ndarray
    records: list[list[dict]]


def read_arms(runs: Sequence[Path]) -> list[Arm]:
    """Group runs of STaR, in the order given.

    Raises:
        ValueError: a folder is no finished run of STaR, or two runs of an arm have the same seed.
    """
    found: dict[Config, list[tuple[Path, Config, list[dict]]]] = {}
    for run in runs:
        config = files.read_config(run)
        star = config.run.objective == "star"
        records = [r for r in files.read_log(run) if "round" in r] if star else []
        if not star or len(records) != config.star.rounds + 1:
            raise ValueError(
                f"{run}: expected a finished run of --objective star, found "
                f"{config.run.objective} and {max(0, len(records) - 1)} rounds"
            )
        same = dataclasses.replace(config.run, seed=0, out="")
        found.setdefault(dataclasses.replace(config, run=same), []).append((run, config, records))
    arms = []
    for group in found.values():
        seeds = tuple(config.run.seed for _, config, _ in group)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{group[-1][0]}: expected runs of different seeds, found {seeds}")
        names = tuple(group[0][2][0]["accuracy"])
        values = [[[r["accuracy"][n] for n in names] for r in records] for _, _, records in group]
        logged = [records for _, _, records in group]
        config = group[0][1]
        arms.append(Arm(name_of(config), config, seeds, names, np.array(values), logged))
    return arms


def name_of(config: Config) -> str:
    """An arm in words."""
    if config.star.learn == "answers":
        return "answers alone"
    return f"STaR, {'with' if config.star.rationalize else 'without'} rationalisation"


def page(arms: Sequence[Arm], command: str) -> str:
    """Accuracy of each arm by round and group in %: mean over seeds (smallest to largest)."""
    parts = [
        f"# STaR, round by round\n\n```sh\n{command}\n```\n\nRight answers to held-out problems, "
        "greedily decoded, in %: mean over seeds (smallest to largest). Round 0 is the untrained "
        "model. Kept: rationales that reach the answer; hinted, kept: with the answer as a hint.\n"
    ]
    for arm in arms:
        heads = ["round", "kept", "hinted, kept", "steps", *arm.groups]
        lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for number in range(arm.accuracy.shape[1]):
            cells = [str(number)]
            for name in ("kept", "rationalized_kept", "steps"):
                values = [run[number].get(name) for run in arm.records]
                cells.append("-" if None in values else f"{np.mean(values):.0f}")
            for column in arm.accuracy[:, number].T * 100:
                spread = f" ({column.min():.0f} to {column.max():.0f})" if len(column) > 1 else ""
                cells.append(f"{column.mean():.1f}{spread}")
            lines.append(f"| {' | '.join(cells)} |")
        minutes = [
            sum(v for r in run for k, v in r.items() if k.endswith("_seconds")) / 60
            for run in arm.records
        ]
        seeds = ", ".join(map(str, arm.seeds))
        parts.append(
            f"## {arm.name}\n\nSeeds {seeds}; {np.mean(minutes):.1f} minutes a run.\n\n"
            + "\n".join(lines)
            + "\n"
        )
    return "\n".join(parts)


def draw_arms(arms: Sequence[Arm], out: Path) -> list[Path]:
    """`rounds.png` and `.svg`: accuracy by round, a line for each group, a panel for each arm.

    Lines are means over seeds, bands reach from the smallest to the largest seed.
    """

    def fill(figure: Figure) -> None:
        axes = panels(figure, [1.7] * len(arms), right=0.8, bottom=0.68)
        for ax, arm in zip(axes, arms, strict=True):
            ends = []
            groups = [name for name in arm.groups if name != "all"] or list(arm.groups)
            for name, colour in zip(groups, itertools.cycle(COLOURS), strict=False):
                found = 100 * arm.accuracy[:, :, arm.groups.index(name)]
                rounds = range(found.shape[1])
                ax.plot(rounds, found.mean(0), color=colour, linewidth=1.4)
                ax.fill_between(rounds, found.min(0), found.max(0), color=colour, alpha=0.15)
                ends.append((found[:, -1].mean(), name, colour))
            ax.set_ylim(-2, 102)
            ax.set_title(f"{arm.name}: right, %")
            label(ax, ends)
        axes[-1].set_xlabel("round (0: before)")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        note(figure, f"{len(arms[0].seeds)} seeds; bands: smallest to largest")

    return paint({"rounds": fill}, out)
