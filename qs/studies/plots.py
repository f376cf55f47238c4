"""Pictures of a run: its training, thought lengths compared, what thinking does for hard tokens.

Needs matplotlib (pip install -e '.[plot]'), which is imported only when something is drawn. Every
picture is written as PNG and as SVG; the same numbers give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qs import files
from qs.evaluation.hard_tokens import Decile
from qs.studies.control_runs import CONTROLS, LENGTH, TRAINED
from qs.studies.controls import OWN, Row
from qs.studies.pictures import (
    BLUE,
    GREEN,
    GREY,
    NOTE,
    PURPLE,
    VERMILION,
    Figure,
    label,
    note,
    paint,
    panels,
)

PANELS = (  # of training: title, inches high, and for each key of the log its label and colour
    ("NLL, nats a token", 2.0, {"nll_base": ("without", GREY), "nll_talk": ("with", BLUE)}),
    ("mean reward, nats", 1.2, {"reward": ("", GREEN)}),
    ("mean mixing weight", 1.2, {"weight_mean": ("", PURPLE)}),
)
MEASURED = ("step", *(key for _, _, keys in PANELS for key in keys))


def draw(run: Path, deciles: Sequence[Decile], out: Path | None = None) -> list[Path]:
    """Draw a run: `training`, `thought-length` and `hard-tokens`, each as .png and .svg.

    `thought-length` is drawn if the run has controls.json, `hard-tokens` if there are deciles.

    Args:
        run: folder of a run.
        deciles: what thinking did for easy and for hard tokens, the easiest first; may be empty.
        out: folder for the pictures; None: `plots` in the run.

    Returns:
        The files written.

    Raises:
        ValueError: matplotlib is missing, or a file of the run is missing or damaged.
    """
    config = files.read_config(run)
    steps = read_steps(run)
    thinking = "pause tokens" if config.run.objective == "pause" else "thoughts"
    pictures: dict[str, Callable[[Figure], None]] = {
        "training": lambda figure: _training(figure, steps, thinking)
    }
    if (run / CONTROLS).is_file():
        curves = read_curves(run, config.thought.thoughts)
        pictures["thought-length"] = lambda figure: _lengths(figure, curves)
    if deciles:
        pictures["hard-tokens"] = lambda figure: _hard(figure, deciles, thinking)
    return paint(pictures, out or run / "plots")


def read_steps(run: Path) -> dict[str, np.ndarray]:
    """What the log of a run folder measured.

    Returns:
        (S,) each of `MEASURED` that the log has: losses and reward in nats; NaN where a step does
        not say, or was not finite.

    Raises:
        ValueError: there is no log, no step in it, or something else in it.
    """
    path = run / files.LOG

    def wrong(found: str) -> ValueError:
        return ValueError(
            f"{path}: expected the log of a run with step and nll_base in each line after the "
            f"first, found {found}; is {run} a run folder that has trained?"
        )

    try:
        lines, records = len(path.read_text().splitlines()), files.read_log(run)
    except FileNotFoundError:
        raise wrong("no such file") from None
    except UnicodeDecodeError as error:
        raise wrong(f"no text ({error})") from None
    if lines > len(records) + 1:  # the last line alone may have been cut short
        raise wrong(f"line {len(records) + 1} damaged")
    if not (steps := records[1:]):
        raise wrong("no step")
    for number, record in enumerate(steps, 2):
        numbers = all(isinstance(record.get(k, 0), int | float | None) for k in MEASURED)
        if not numbers or record.get("step") is None or "nll_base" not in record:
            raise wrong(f"{str(record)[:80]} in line {number}")
    there = [key for key in MEASURED if any(key in record for record in steps)]
    return {key: np.array([record.get(key) for record in steps], dtype=float) for key in there}


@dataclass(frozen=True)
class Curves:
    """What controls say of the length of thoughts.

    Attributes:
        own: n of the run.
        trained: by n: models trained with thoughts of that length.
        evaluated: by n: the run's own weights, with thoughts of that length in evaluation only.
        flat: by name: models without sampled thoughts.
    """

    own: int
    trained: dict[int, Row]
    evaluated: dict[int, Row]
    flat: dict[str, Row]


def read_curves(run: Path, n: int) -> Curves:
    """Thought lengths compared, from the controls of a run.

    Args:
        run: folder.
        n: thought length of the run.

    Raises:
        ValueError: the controls are damaged or of another version.
    """
    path = run / CONTROLS
    try:
        tables = files.read_json(path)["tables"]
        trained, evaluated = ([Row(**row) for row in tables[title]] for title in (TRAINED, LENGTH))
        curves = _by_length(trained, n), _by_length(evaluated, n)
        if not all(curves):
            raise TypeError("no row of a length")
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected thought lengths in the tables {TRAINED!r} and {LENGTH!r}, found "
            f"something else ({error!r}); run python evaluate.py controls {run} again"
        ) from None
    flat = {row.name: row for row in trained if row.name in ("plain training", "pause tokens")}
    return Curves(n, *curves, flat)


def _by_length(rows: Sequence[Row], own: int) -> dict[int, Row]:
    """Rows named "n = K", and the run itself, by the length of their thoughts."""
    found = {}
    for row in rows:
        named = re.fullmatch(r"n = (\d+)", row.name)
        if named or row.name == OWN:
            found[int(named[1]) if named else own] = row
    return dict(sorted(found.items()))


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over each value and its `half` neighbours on both sides, where there are as many.

    Args:
        values: (S,); NaN counts as not there.
        half: neighbours on one side.
    """
    there = ~np.isnan(values)
    level = values[there][:1].sum()  # a constant stays one to the last bit
    sums = np.append(0.0, np.where(there, values - level, 0.0).cumsum())
    counts = np.append(0, there.cumsum())
    at = np.arange(len(values))
    low, high = (at - half).clip(0), (at + half + 1).clip(max=len(values))
    count = counts[high] - counts[low]
    total = np.where(count > 0, sums[high] - sums[low], np.nan)
    return level + total / np.maximum(count, 1)


def nll_range(decile: Decile) -> str:
    """The NLL of a tenth of the tokens, short enough to stand below its bar."""

    def short(value: float) -> str:
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"

    low, high = short(decile.low), short(decile.high)
    return ("< 0.01" if decile.high < 0.005 else low) if low == high else f"{low}–{high}"


def _training(figure: Figure, steps: dict[str, np.ndarray], thinking: str) -> None:
    """NLL, reward and mixing weight by step."""
    x = steps["step"]
    half = len(x) // 40
    shown = [panel for panel in PANELS if not steps.keys().isdisjoint(panel[2])]
    thinks = "nll_talk" in steps
    axes = panels(figure, [high for _, high, _ in shown], 1.5 if thinks else 0.2, bottom=0.5)
    for ax, (title, _, keys) in zip(axes, shown, strict=True):
        labels = []
        for key in filter(steps.__contains__, keys):
            text, color = keys[key]
            smoothed = smooth(steps[key], half)
            if half:
                ax.plot(x, steps[key], color=color, linewidth=0.6, alpha=0.35, zorder=1)
            ax.plot(x, smoothed, color=color, linewidth=1.8, marker="" if len(x) > 1 else "o")
            ends = smoothed[~np.isnan(smoothed)]
            if thinks and text and len(ends):
                labels.append((ends[-1], f"{text} {thinking}", color))
        if "reward" in keys:
            ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
        ax.set_title(title)
        ax.margins(x=0.01)
        label(ax, labels)
    if half:
        note(figure, f"thick: mean over {2 * half + 1} steps")
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)


def _lengths(figure: Figure, curves: Curves) -> None:
    """Gold answer probability by thought length."""
    (ax,) = panels(figure, [3.2], right=1.6, bottom=0.68)
    series = [
        (curves.trained, "trained with n", BLUE, "o", -1),
        (curves.evaluated, f"trained with n = {curves.own},\nevaluated with n", VERMILION, "s", 1),
    ]
    lengths = sorted({*curves.trained, *curves.evaluated})
    aside = 0.005 * (lengths[-1] - lengths[0])  # so that bars of one n do not hide each other
    labels, seeds = [], 1
    for rows, text, color, marker, side in series:
        x, found = [n + side * aside for n in rows], list(rows.values())
        y, bars = [row.gold for row in found], [row.gold_interval for row in found]
        ax.errorbar(x, y, np.array(bars, float), fmt="none", elinewidth=8, ecolor=(color, 0.3))
        ax.plot(x, y, color=color, marker=marker, markersize=3.5, linewidth=1.2)
        ax.vlines(x, *np.transpose([row.gold_seeds for row in found]), color, linewidth=0.8)
        labels.append((y[-1], text, color))
        seeds = max(seeds, *(row.seeds for row in found))
    for (name, row), color in zip(curves.flat.items(), (GREY, PURPLE), strict=False):
        ax.axhline(row.gold, color=color, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)
        half = row.gold_interval or 0.0
        ax.axhspan(row.gold - half, row.gold + half, color=color, alpha=0.12, linewidth=0, zorder=0)
        labels.append((row.gold, name, color))
    ax.set_ylim(0.0, min(1.05, ax.get_ylim()[1]))
    ax.set_xticks(lengths)
    ax.set_title("gold answer probability")
    ax.set_xlabel("n, tokens in a thought")
    label(ax, labels)
    lines = f"; thin lines: smallest to largest of {seeds} seeds" if seeds > 1 else ""
    note(figure, f"pale bars and bands: 95 % intervals{lines}")


def _hard(figure: Figure, deciles: Sequence[Decile], thinking: str) -> None:
    """Mean gain by tenth of the tokens."""
    (ax,) = panels(figure, [2.8], right=0.1, bottom=0.8)
    ax.use_sticky_edges = False  # room above bars that all hang down
    x = range(1, len(deciles) + 1)
    gains, bars = np.array([(d.gain, d.interval) for d in deciles], float).T
    ax.bar(x, gains, 0.7, color=BLUE)
    ax.errorbar(x, gains, bars, fmt="none", ecolor="black", capsize=2)
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    ax.set_xticks(x, [f"{i}\n{nll_range(decile)}" for i, decile in zip(x, deciles, strict=True)])
    ax.tick_params(axis="x", labelsize=NOTE - 0.5, length=0)
    ax.spines["bottom"].set_visible(False)
    ax.margins(x=0.01)
    ax.set_title(f"gain by {thinking}, nats a token")
    ax.set_xlabel(f"tenths of the tokens by NLL without {thinking}, in nats")
    note(figure, f"{sum(d.tokens for d in deciles):,} tokens; lines: 95 % intervals")
