"""Pictures: a run's training, thought lengths, hard tokens; STaR round by round.

Needs matplotlib (pip install -e '.[plot]'), which is imported only when something is drawn. Every
picture is written as PNG and as SVG; the same numbers give the same bytes.
"""

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qs import files
from qs.atomic import write_bytes
from qs.cli import typed
from qs.evaluation.hard_tokens import Decile
from qs.evaluation.heldout import AnswerScore
from qs.evaluation.statistics import Estimate
from qs.locks import make_folder
from qs.studies.answers_panel import draw_answers, read_answers
from qs.studies.control_runs import CONTROLS
from qs.studies.controls import LENGTH, OWN, PAUSES, PLAIN, TRAINED, ControlRow
from qs.studies.ladder import LADDER, RUNGS, Line, read_ladder
from qs.studies.star_rounds import Arm

Figure = Axes = Any  # matplotlib's, which may be absent
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#00785A", "#8A4A75"  # told apart by all
GREY = "#555555"
WIDTH = 7.0  # inches; 700 pixels in a page that scales the picture to fit
SMALL = 8  # points, of remarks
MATPLOTLIB = {
    "figure.autolayout": True,  # the constrained layout gives other bytes from time to time
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), "black"),
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "savefig.dpi": 150,
    "svg.hashsalt": "qs",
}
PANELS = {  # of training: title and height in inches of each key of the log
    "nll_base": ("NLL without {thinking}, nats a token", 1.4),
    "gain": ("gain by {thinking}, nats a token", 1.4),
    "reward": ("mean reward, {unit}", 1.2),
    "weight_mean": ("mean mixing weight", 1.2),
}
LINE_COLORS = {"nll_base": GREY, "gain": BLUE, "reward": GREEN, "weight_mean": PURPLE}


def draw_run(run: Path, deciles: Sequence[Decile], out: Path | None = None) -> list[Path]:
    """Draw a run: `training` and what else there is of it; the .png and .svg files written.

    `thought-length` is drawn if the run has controls.json, `ladder` if it has ladder.json,
    `hard-tokens` if there are deciles (what thinking did for tokens, the easiest first). They go to
    `out`, else to `plots` in the run.

    Raises:
        ValueError: matplotlib is missing, or a file of the run is missing or damaged.
    """
    config = files.read_config(run)
    if config.run.bootstraps:
        raise ValueError(f"{run} is a run of STaR: draw it with {typed('evaluate.py rounds', run)}")
    steps, answers = read_steps(run), read_answers(run)
    thinking = "pause tokens" if config.run.objective == "pause" else "thoughts"
    unit = "nats" if config.thought.reward == "information-gain" else "a share"
    words = {"thinking": thinking, "unit": unit}
    pictures: dict[str, Callable[[Figure], None]] = {}
    pictures["training"] = lambda figure: _draw_training(figure, steps, answers, words)
    if (run / CONTROLS).is_file():
        curves, fixed = read_curves(run, config.thought.thoughts), config.thought.end == "fixed"
        pictures["thought-length"] = lambda figure: _draw_lengths(figure, curves, fixed)
    if (run / LADDER).is_file():
        tables = read_ladder(run)
        pictures["ladder"] = lambda figure: _draw_ladder(figure, tables)
    if deciles:
        pictures["hard-tokens"] = lambda figure: _draw_deciles(figure, deciles, thinking)
    return _save(pictures, out or run / "plots")


def draw_rounds(arms: Sequence[Arm], out: Path) -> list[Path]:
    """`rounds.png` and `.svg`: accuracy by round, a line for each group, a panel for each arm.

    Lines are means over seeds, bands reach from the smallest to the largest seed.

    Raises:
        ValueError: matplotlib is missing.
    """
    return _save({"rounds": lambda figure: _draw_rounds(figure, arms)}, out)


def _save(pictures: Mapping[str, Callable[[Figure], None]], out: Path) -> list[Path]:
    """Draw pictures by name, each filled by a function, as .png and .svg."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise ValueError(
            "expected matplotlib to draw pictures, found none; run pip install -e '.[plot]'"
        ) from None
    make_folder(out)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own style would change the bytes
        matplotlib.rcParams.update(MATPLOTLIB)
        for name, fill in pictures.items():
            figure = matplotlib.figure.Figure()
            fill(figure)
            for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
                written.append(out / f"{name}{suffix}")
                drawn = io.BytesIO()
                figure.savefig(drawn, format=suffix[1:], metadata=metadata)
                write_bytes(written[-1], drawn.getvalue())
    return written


# ---- numbers -------------------------------------------------------------------------------------
def read_steps(run: Path) -> dict[str, np.ndarray]:
    """(S,) "step" and each key of `LINE_COLORS` that the log of a run has; losses, reward in nats.

    NaN where a step does not say, or was not finite.

    Raises:
        ValueError: there is no step in the log, or something else.
    """
    steps = [record for record in files.read_log(run) if "step" in record]
    wrong = [str(record)[:80] for record in steps if not _is_step(record)]
    if wrong or not steps:
        raise ValueError(
            f"{run / files.LOG}: expected the log of a run with step and nll_base in each line, "
            f"found {(wrong or ['no step'])[0]}; is {run} a run folder that has trained?"
        )
    logged = [key for key in ("step", *LINE_COLORS) if any(key in record for record in steps)]
    return {key: np.array([record.get(key) for record in steps], float) for key in logged}


def _is_step(record: Mapping[str, Any]) -> bool:
    numbers = all(isinstance(record.get(key, 0), int | float | None) for key in LINE_COLORS)
    return numbers and isinstance(record["step"], int) and "nll_base" in record


@dataclass(frozen=True)
class Curves:
    """What controls say of the length of thoughts: rows by n, or by name."""

    own: int  # n of the run
    trained: dict[int, ControlRow]  # models trained with thoughts of that length
    evaluated: dict[int, ControlRow]  # the run's own weights; that length in evaluation only
    flat: dict[str, ControlRow]  # models without sampled thoughts


def read_curves(run: Path, n: int) -> Curves:
    """Thought lengths compared, from the controls of a run that thinks n tokens.

    Raises:
        ValueError: the controls are damaged or of another version.
    """
    path = run / CONTROLS
    try:
        tables = files.read_json(path)["tables"]
        trained, evaluated = ([_row(row) for row in tables[title]] for title in (TRAINED, LENGTH))
        curves = _by_length(trained, n), _by_length(evaluated, n)
        if not all(curves):
            raise TypeError("no row of a length")
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected thought lengths in the tables {TRAINED!r} and {LENGTH!r}, found "
            f"something else ({error!r}); run {typed('evaluate.py controls', run)} again"
        ) from None
    return Curves(n, *curves, flat={r.name: r for r in trained if r.name in (PLAIN, PAUSES)})


def _row(values: dict[str, Any]) -> ControlRow:
    for name in ("gold", "other"):
        if f"{name}_interval" in values:  # as it was written before there were estimates
            values[name] = values[name], values.pop(f"{name}_interval")
    return ControlRow(**values)


def _by_length(rows: Sequence[ControlRow], own: int) -> dict[int, ControlRow]:
    """Rows named "n = K", and the run itself, by the length of their thoughts."""
    by_length = {}
    for row in rows:
        length = re.fullmatch(r"n = (\d+)", row.name)
        if length or row.name == OWN:
            by_length[int(length[1]) if length else own] = row
    return dict(sorted(by_length.items()))


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over each of (S,) values and its `half` neighbours on both sides; NaN is left out."""
    means = np.full(len(values), np.nan)
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        near = near[~np.isnan(near)]
        if near.size:
            # about its first, so that a constant stays one to the last bit
            means[i] = near[0] + (near - near[0]).mean()
    return means


def nll_range(decile: Decile) -> str:
    """The NLL of a tenth of the tokens, short enough to stand below its bar."""
    low, high = (f"{x:.2f}" if x < 9.995 else f"{x:.1f}" for x in (decile.low, decile.high))
    return ("< 0.01" if decile.high < 0.005 else low) if low == high else f"{low}–{high}"


# ---- pictures ------------------------------------------------------------------------------------
def _panels(
    figure: Figure, panels: Sequence[tuple[str, float]], xlabel: str, remark: str
) -> list[Axes]:
    """Panels one below the other with a common x axis, each of a title and a height in inches."""
    titles, heights = zip(*panels, strict=True)
    figure.set_size_inches(WIDTH, sum(heights) + 0.5 * len(heights) + 0.8)
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for ax, title in zip(axes, titles, strict=True):
        ax.yaxis.get_offset_text().set(ha="right", x=-0.02)  # beside the title
        ax.set_title(title)
    axes[-1].set_xlabel(xlabel)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if remark:
        figure.supxlabel(remark, x=0.99, ha="right", fontsize=SMALL, color=GREY)
    return list(axes)


def _draw_training(
    figure: Figure,
    steps: Mapping[str, np.ndarray],
    answers: Mapping[str, AnswerScore],
    words: Mapping[str, str],
) -> None:
    """What there is of `PANELS` by step, titled in `words`; beside it answers before and after."""
    x = steps["step"]
    half = len(x) // 40
    keys = [key for key in PANELS if key in steps]
    panels = [(title.format(**words), height) for title, height in map(PANELS.get, keys)]
    remark = f"thick: mean over {2 * half + 1} steps" if half else ""
    axes = _panels(figure, panels, "step", remark)
    if answers:
        colors = LINE_COLORS["nll_base"], LINE_COLORS["gain"]
        draw_answers(axes, answers, colors, words["thinking"])
    for ax, key in zip(axes, keys, strict=True):
        color, means = LINE_COLORS[key], smooth(steps[key], half)
        if half:
            ax.plot(x, steps[key], color=color, linewidth=0.6, alpha=0.35, zorder=1)
        ax.plot(x, means, color=color, linewidth=1.8, marker="" if len(x) > 1 else "o")
        if key in ("gain", "reward"):
            ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
        ax.margins(x=0.01)


def _draw_lengths(figure: Figure, curves: Curves, fixed: bool) -> None:
    """Gold answer probability by thought length; `fixed`: thoughts end after n tokens."""
    series = [
        (curves.trained, "trained with n", BLUE, "o", -1),
        (curves.evaluated, f"trained with n = {curves.own},\nevaluated with n", VERMILION, "s", 1),
    ]
    seeds = max(row.seeds for rows, *_ in series for row in rows.values())
    remark = "pale bars and bands: 95 % intervals"
    remark += f"; thin lines: smallest to largest of {seeds} seeds" if seeds > 1 else ""
    lengths = sorted({*curves.trained, *curves.evaluated})
    best = max(curves.trained, key=lambda n: curves.trained[n].gold[0])
    if fixed and best < lengths[-1]:
        remark += (
            f"\nn > {best}: the end vector stands after the working, or a second one, has ended"
        )
    (ax,) = _panels(figure, [("gold answer probability", 3.2)], "n, tokens in a thought", remark)
    aside = 0.005 * (lengths[-1] - lengths[0])  # so that bars of one n do not hide each other
    for rows, text, color, marker, side in series:
        x = [n + side * aside for n in rows]
        gold, intervals = np.array([row.gold for row in rows.values()], float).T
        low, high = np.transpose([row.gold_seeds for row in rows.values()])
        ax.errorbar(x, gold, intervals, fmt="none", elinewidth=8, ecolor=(color, 0.3))
        ax.plot(x, gold, color=color, marker=marker, markersize=3.5, linewidth=1.2, label=text)
        ax.vlines(x, low, high, color, linewidth=0.8)
    for (name, row), color in zip(curves.flat.items(), (GREY, PURPLE), strict=False):
        gold, dashes = Estimate(*row.gold), (0, (5, 3))
        ax.axhline(gold.mean, color=color, linewidth=1.2, linestyle=dashes, zorder=0, label=name)
        if gold.ends:
            ax.axhspan(*gold.ends, color=color, alpha=0.12, linewidth=0, zorder=0)
    ax.set_ylim(0.0, min(1.05, ax.get_ylim()[1]))
    ax.set_xticks(lengths)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw_deciles(figure: Figure, deciles: Sequence[Decile], thinking: str) -> None:
    title = f"gain by {thinking}, nats a token"
    xlabel = f"tenths of the tokens by NLL without {thinking}, in nats"
    remark = f"{sum(d.tokens for d in deciles):,} tokens; lines: 95 % intervals"
    (ax,) = _panels(figure, [(title, 2.8)], xlabel, remark)
    ax.use_sticky_edges = False  # room above bars that all hang down
    x = range(1, len(deciles) + 1)
    gains, bars = np.array([(d.gain, d.interval) for d in deciles], float).T
    ax.bar(x, gains, 0.7, color=BLUE)
    ax.errorbar(x, gains, bars, fmt="none", ecolor="black", capsize=2)
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    ax.set_xticks(x, [f"{i}\n{nll_range(decile)}" for i, decile in zip(x, deciles, strict=True)])
    ax.tick_params(axis="x", labelsize=SMALL - 0.5, length=0)
    ax.spines["bottom"].set_visible(False)
    ax.margins(x=0.01)


def _draw_ladder(figure: Figure, tables: Mapping[str, Sequence[Line]]) -> None:
    """Gold answer probability of each row, a dot for each seed, a color for each table."""
    told = {line.title for lines in tables.values() for line in lines}
    titles = [rung.title for rung in RUNGS if rung.title in told]
    figure.set_size_inches(WIDTH, 0.9 + 0.3 * len(titles))
    ax = figure.subplots()
    ax.set_title("gold answer probability, a dot for each seed")
    styles = (BLUE, 0.13), (VERMILION, -0.13)
    for (name, lines), (color, up) in zip(tables.items(), styles, strict=True):
        dots = [(gold, up - titles.index(line.title)) for line in lines for gold in line.gold]
        ax.scatter(*zip(*dots, strict=True), s=16, color=color, label=name.lower())
    ax.set_yticks([-i for i in range(len(titles))], titles)
    ax.set_xlim(0, 1)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=2)


def _draw_rounds(figure: Figure, arms: Sequence[Arm]) -> None:
    seeds = max(len(arm.seeds) for arm in arms)
    remark = f"{seeds} seeds; bands: smallest to largest" if seeds > 1 else ""
    titles = [textwrap.fill(f"{arm.name}: right, %", 80, break_on_hyphens=False) for arm in arms]
    panels = [(title, 1.7 + 0.2 * title.count("\n")) for title in titles]
    for ax, arm in zip(_panels(figure, panels, "round (0: before)", remark), arms, strict=True):
        groups = [name for name in arm.groups if name != "all"] or list(arm.groups)
        colors = itertools.cycle((BLUE, GREEN, PURPLE, VERMILION, GREY))
        for name, color in zip(groups, colors, strict=False):
            right = 100 * arm.accuracy[:, :, arm.groups.index(name)]  # (runs, rounds + 1)
            rounds = range(right.shape[1])
            ax.plot(rounds, right.mean(0), color=color, linewidth=1.4, label=name)
            ax.fill_between(rounds, right.min(0), right.max(0), color=color, alpha=0.15)
        ax.set_ylim(-2, 102)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
