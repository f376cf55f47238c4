"""Runs of STaR side by side: accuracy by group and round, one arm for runs that differ in seed."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qs import files
from qs.config import Config
from qs.star.records import minutes, round_records
from qs.tables import Table
from qs.unused import flag, used

ABOUT_ROUNDS = """Right answers to held-out problems, greedily decoded, in %: mean over seeds \
(smallest to largest). Round 0 is the untrained model. Kept: rationales that reach the answer; \
hinted, kept: with the answer as a hint.
"""


@dataclass(frozen=True)
class Arm:
    """Runs with the same settings and different seeds.

    `apart`: those settings in which arms that stand beside it differ.
    """

    config: Config  # of the first run
    seeds: tuple[int, ...]  # of the runs, in order
    groups: tuple[str, ...]  # of problems ("3 digits"), "all" last
    accuracy: np.ndarray  # (runs, rounds + 1, groups) share right; round 0 is the untrained model
    records: list[list[dict[str, Any]]]  # what each run logged of each round
    apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is, in words; then, as flags, in what else it differs from the arms beside it."""
        star, settings = self.config.star, _settings(self.config)
        words = f"STaR, {'with' if star.rationalize else 'without'} rationalisation"
        told = [name for name in self.apart if settings.get(name) is not None]
        flags = [flag(name, settings[name]) for name in told]
        return " ".join(["answers alone" if star.learn == "answers" else words, *flags])


def _settings(config: Config) -> dict[str, Any]:
    """What makes an arm: all that changes something in its rounds but the seed."""
    settings = used(config)
    for name in ("seed", "out", "keep"):
        del settings[name]
    if config.star.learn == "answers":  # no rationale is drawn to be learnt
        del settings["rationalize"], settings["rationale_temperature"]
    return settings


def read_arms(runs: Sequence[Path]) -> list[Arm]:
    """Group runs of STaR, in the order given.

    Raises:
        ValueError: a folder is no finished run of STaR, or two runs of an arm have the same seed.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[Path]] = {}
    for run in runs:
        config = files.read_config(run)
        rounds = len(round_records(run, config.star.rounds)) - 1
        if config.run.objective != "star" or rounds != config.star.rounds:
            raise ValueError(
                f"{run}: expected a finished run of --objective star, found "
                f"{config.run.objective} and {max(0, rounds)} rounds"
            )
        groups.setdefault(tuple(_settings(config).items()), []).append(run)
    values: dict[str, set[Any]] = {}
    for name, value in (pair for settings in groups for pair in settings):
        values.setdefault(name, set()).add(value)
    told = ("learn", "rationalize")  # in words
    apart = tuple(name for name in values if len(values[name]) > 1 and name not in told)
    return [dataclasses.replace(_read_arm(group), apart=apart) for group in groups.values()]


def _read_arm(runs: Sequence[Path]) -> Arm:
    configs = [files.read_config(run) for run in runs]
    seeds = tuple(config.run.seed for config in configs)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{runs[-1]}: expected runs of different seeds, found {seeds}")
    records = [round_records(run, configs[0].star.rounds) for run in runs]
    groups = tuple(records[0][0]["accuracy"])
    accuracy = [[[r["accuracy"][group] for group in groups] for r in rounds] for rounds in records]
    return Arm(configs[0], seeds, groups, np.array(accuracy), records)


def arm_table(arm: Arm) -> Table:
    """Accuracy by round and group in %: mean over seeds (smallest to largest)."""

    def logged(name: str, number: int) -> str:
        values = [rounds[number].get(name) for rounds in arm.records]
        return "-" if None in values else f"{np.mean(values):.0f}"

    def spread(shares: np.ndarray) -> str:
        ends = f" ({shares.min():.0f} to {shares.max():.0f})" if len(shares) > 1 else ""
        return f"{shares.mean():.1f}{ends}"

    rows = [
        (
            str(number),
            *(logged(name, number) for name in ("kept", "rationalized_kept", "steps")),
            *(spread(shares) for shares in 100 * arm.accuracy[:, number].T),
        )
        for number in range(arm.accuracy.shape[1])
    ]
    took = np.mean([sum(map(minutes, rounds)) for rounds in arm.records])
    seeds = ", ".join(map(str, arm.seeds))
    heads = ("round", "kept", "hinted, kept", "steps", *arm.groups)
    return Table(arm.name, heads, rows, [f"seeds {seeds}; {took:.1f} minutes a run"])
