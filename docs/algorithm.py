"""Draw algorithm.svg: a row of text, thoughts after a token, who sees whom, mixing and loss.

python docs/algorithm.py
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

BLUE, ORANGE, PURPLE, GREEN = "#9ecae9", "#ffbe7d", "#d4a6c8", "#8cd17d"
INK, FAINT = "#222222", "#777777"
TOKENS = "71600↵"  # of the bundled text, which asks for the last digit of 7 + 1 + 6
WORKING, USELESS = "78444", "71601"  # 7, 8, 14, 14, 14: last digits of the running sum
BOX, STEP, LEFT, TOP = 34, 40, 130, 40  # of tokens
ANCHOR = LEFT + (len(TOKENS) - 1) * STEP  # the token whose thoughts are drawn
BRANCHES = TOP + 110, TOP + 172  # upper ends of the two thoughts

STAGES = (
    ("1  base", "read the text once: a prediction of every next token"),
    ("2  think", "after every token sample K thoughts of n tokens, all in parallel"),
    ("3  score", "text and all thoughts in one packed pass, judged on m true tokens"),
    ("4  mix", "w = head(output without, output after the thought), 0 at the start"),
    ("5  loss", "½ NLL without + ½ NLL mixed + β · REINFORCE"),
    ("", "reward: how much likelier the thought made the m true tokens"),
    ("", "baseline: the mean reward of the K thoughts after the same token"),
)


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = INK) -> str:
    """A rectangle; x, y of its upper left corner."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="3" fill="{fill}" stroke="{stroke}" stroke-width="0.8"/>'


def words(x: float, y: float, text: str, size: int = 13, ink: str = INK, at: str = "start") -> str:
    """A line of text; x, y of its base line."""
    style = f'font-size="{size}" fill="{ink}" text-anchor="{at}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>'


def token(x: float, y: float, text: str, fill: str) -> str:
    """A token in its box."""
    size = 16 if len(text) == 1 else 11
    label = words(x + BOX / 2, y + BOX / 2 + size / 3, text, size, at="middle")
    return f"{box(x, y, BOX, BOX, fill)}\n{label}"


def arrow(path: str) -> str:
    """A line with a head at its end."""
    return f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#head)"/>'


def prediction(x: float, y: float, heights: Sequence[float]) -> str:
    """Bars for some next tokens, the true one (4) among them."""
    parts = [box(x, y, 58, BOX, "white", FAINT)]
    for i, height in enumerate(heights):
        fill = GREEN if i == 2 else "#cccccc"
        parts.append(box(x + 5 + 12 * i, y + BOX - 4 - height, 10, height, fill))
    return "\n".join(parts)


def row() -> list[str]:
    """The text, what is thought after its tokens, and predictions of the next one."""
    parts = [words(20, TOP + 15, "text"), words(20, TOP + 31, "B rows of T", 11, FAINT)]
    parts += [
        words(20, TOP + 75, "K thoughts"),
        words(20, TOP + 91, "after every token", 11, FAINT),
    ]
    for i, text in enumerate(TOKENS):
        x = LEFT + i * STEP
        parts.append(token(x, TOP, text, BLUE))
        if x < ANCHOR:
            parts.append(arrow(f"M {x + BOX / 2} {TOP + BOX} v 20"))
            parts += [box(x + 4, TOP + y, BOX - 8, 11, ORANGE, FAINT) for y in (62, 80)]
    parts.append(arrow(f"M {ANCHOR + BOX / 2} {TOP + BOX} V {BRANCHES[0] - 5}"))
    parts.append(arrow(f"M {ANCHOR + BOX / 2} {TOP + 88} H {ANCHOR - 9} V {BRANCHES[1] + 17} h 4"))

    x, base = 690, (8, 6, 9, 7)
    parts.append(arrow(f"M {ANCHOR + BOX} {TOP + 17} H {x - 6}"))
    parts.append(words(x - 10, TOP + 11, "without thoughts", 11, FAINT, "end"))
    parts.append(prediction(x, TOP, base))
    parts.append(token(930, TOP, "4", GREEN))
    parts.append(words(922, TOP + 21, "true next token", 11, FAINT, "end"))
    for y, thought, after, mixed, told in (
        (BRANCHES[1], USELESS, (4, 20, 3, 5), (6, 13, 6, 6), ("less likely:", "not")),
        (BRANCHES[0], WORKING, (2, 2, 26, 2), (4, 3, 20, 4), ("likelier:", "reinforced")),
    ):
        slots = [("start", PURPLE), *((z, ORANGE) for z in thought), ("end", PURPLE)]
        parts += [token(ANCHOR + i * STEP, y, *slot) for i, slot in enumerate(slots)]
        middle = y + BOX / 2
        parts.append(arrow(f"M {ANCHOR + len(slots) * STEP - 6} {middle} H {x - 6}"))
        parts.append(prediction(x, y, after))
        parts.append(arrow(f"M {x + 58} {middle} h 11"))
        parts.append(arrow(f"M {x + 58} {TOP + 17} h 26 V {y - 1}"))
        parts.append(f'<circle cx="{x + 84}" cy="{middle}" r="13" fill="white" stroke="{INK}"/>')
        parts.append(words(x + 84, middle + 5, "w", 14, at="middle"))
        parts.append(arrow(f"M {x + 97} {middle} h 12"))
        parts.append(prediction(x + 115, y, mixed))
        parts += [words(x + 182, y + 14 + 15 * i, line, 12) for i, line in enumerate(told)]
    return parts


class Slot(NamedTuple):
    """One place of a packed row; text has depth 0, a branch counts from 1."""

    name: str
    anchor: int
    branch: int
    depth: int


def sees(query: Slot, key: Slot) -> bool:
    """The one rule: the text up to the anchor, and the own branch up to itself."""
    if key.depth == 0:
        return key.anchor <= query.anchor
    return key.branch == query.branch and key.depth <= query.depth


def mask(left: float, top: float, cell: float = 15) -> list[str]:
    """Who sees whom, for four tokens and the thoughts after two of them."""
    slots = [Slot(f"x{t + 1}", t, 0, 0) for t in range(4)]
    for branch, anchor in enumerate((0, 2), 1):
        names = ("s", "z", "e", f"x{anchor + 2}")
        slots += [Slot(name, anchor, branch, d) for d, name in enumerate(names, 1)]
    parts = []
    for i, query in enumerate(slots):
        y = top + i * cell
        parts.append(words(left - 6, y + 11, query.name, 10, at="end"))
        parts.append(words(left + i * cell + cell / 2, top - 5, query.name, 10, at="middle"))
        for j, key in enumerate(slots):
            colour = BLUE if key.depth == 0 else ORANGE
            fill = colour if sees(query, key) else "white"
            parts.append(box(left + j * cell, y, cell, cell, fill, "#cccccc"))
    parts.append(words(left - 36, top - 26, "Who sees whom in a packed row", 14))
    below = top + len(slots) * cell + 20
    rule = (
        "the text up to its anchor, and its own branch up to itself",
        "s start, z thought, e end; then the true token again",
    )
    parts += [words(left - 36, below + 16 * i, line, 11, FAINT) for i, line in enumerate(rule)]
    return parts


def page(width: int = 1000, height: int = 570) -> str:
    """The whole picture."""
    tip = '<path d="M 0 0 L 7 3.5 L 0 7 z"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="DejaVu Sans, Helvetica, Arial, sans-serif">',
        "<title>Quiet-STaR: thoughts after every token, mixed into the prediction</title>",
        '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="4" refY="3.5"'
        f' orient="auto">{tip}</marker></defs>',
        box(0, 0, width, height, "white", "white"),
        *row(),
        *mask(66, 332),
    ]
    for i, (name, what) in enumerate(STAGES):
        y = 340 + 31 * i
        parts += [words(410, y, name, 15), words(490, y, what, 14)]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(page(), encoding="utf-8")
