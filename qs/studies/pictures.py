"""How every picture is made: colours, panels, labels at the ends of lines, PNG and SVG.

Needs matplotlib (pip install -e '.[plot]'), which is imported only when something is drawn. The
same numbers give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Axes = Figure = Any  # matplotlib's, which may be absent
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#00785A", "#8A4A75"  # told apart by all
GREY = "#555555"
WIDTH = 7.0  # inches; 700 pixels in a page that scales the picture to fit
LABEL, NOTE = 9, 8  # points
STYLE = {
    "font.size": LABEL,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.edgecolor": GREY,
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), "black"),
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "savefig.dpi": 150,
    "svg.hashsalt": "qs",
}


def paint(pictures: Mapping[str, Callable[[Figure], None]], out: Path) -> list[Path]:
    """Draw pictures by name, each as .png and .svg.

    Args:
        pictures: what fills each figure.
        out: folder, made if missing.

    Returns:
        The files written.

    Raises:
        ValueError: matplotlib is missing.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise ValueError(
            "expected matplotlib to draw pictures, found none; run pip install -e '.[plot]'"
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own style would change the bytes
        matplotlib.rcParams.update(STYLE)
        for name, fill in pictures.items():
            figure = matplotlib.figure.Figure()
            fill(figure)
            for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
                written.append(out / f"{name}{suffix}")
                figure.savefig(written[-1], metadata=metadata)
    return written


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Where labels go that want certain places and must not overlap.

    The nearest by least squares in the order of the places (isotonic regression, pooling adjacent
    violators).

    Args:
        places: wanted middle of each label.
        heights: of each label, in the same unit.
    """
    order = np.argsort(places, kind="stable")
    high = np.asarray(heights)[order]
    below = np.append(0.0, (high[:-1] + high[1:]).cumsum() / 2)  # middles, all touching, from 0
    pools: list[list[float]] = []  # what labels that touch want of the lowest of all
    for place in np.asarray(places)[order] - below:
        pools.append([place])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    found = np.repeat([np.mean(pool) for pool in pools], [len(pool) for pool in pools]) + below
    return found[np.argsort(order)].tolist()


def panels(figure: Figure, heights: Sequence[float], right: float, bottom: float) -> list[Axes]:
    """Panels one below the other with a common x axis; the figure takes its size from them.

    `heights` of the panels, room at the `right` for labels, and at the `bottom`, all in inches.
    """
    left, top, between = 0.6, 0.36, 0.42
    full = bottom + sum(heights) + between * (len(heights) - 1) + top
    figure.set_size_inches(WIDTH, full)
    found: list[Axes] = []
    at = full - top
    for height in heights:
        box = (left / WIDTH, (at - height) / full, (WIDTH - left - right) / WIDTH, height / full)
        found.append(figure.add_axes(box, sharex=found[0] if found else None))
        found[-1].yaxis.get_offset_text().set(ha="right", x=-0.02)  # beside the title
        found[-1].tick_params(labelbottom=False)
        at -= height + between
    found[-1].tick_params(labelbottom=True)
    return found


def note(figure: Figure, text: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(1 - 0.1 / width, 0.08 / height, text, fontsize=NOTE, color=GREY, ha="right")


def label(ax: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """(value, text, colour) of lines, written to the right of their ends."""
    low, high = ax.get_ylim()
    line = 1.25 * LABEL / (72 * ax.get_window_extent().height / ax.figure.dpi)  # of the height
    places = [(value - low) / (high - low) for value, _, _ in labels]
    heights = [line * (1 + text.count("\n")) for _, text, _ in labels]
    for at, (_, text, color) in zip(spread(places, heights), labels, strict=True):
        ax.text(1.015, at, text, color=color, va="center", transform=ax.transAxes, linespacing=1.1)
