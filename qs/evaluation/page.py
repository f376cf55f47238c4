"""What a model thought before each token of some text -> one HTML page, or lines for a terminal.

Text is data: between tags, never in an attribute, style or script; what does not show becomes a
visible mark (`shown`). A page needs nothing from elsewhere; without its script only keys are lost.
"""

from __future__ import annotations

import html
import math
import unicodedata
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, groupby

LEVELS = (0.05, 0.15, 0.5, 1.5)  # nats from which a token is shaded, and shaded more
FEW = 5  # tokens, and thoughts of each, in the table under a passage
CONTEXT = 16  # characters before a token in that table
NARROWEST = 48  # columns of a terminal
COLORS = (0, 195, 153, 117, 75, 208, 215, 223, 230)  # of a terminal's 256, by level: [-1] hurt
JOINERS = "\u200c\u200d"  # parts of words and of emoji
EMPTY, MARKS = "∅", {"\n": "↵", "\t": "⇥"}  # other marks look like \x1b


@dataclass(frozen=True)
class Thought:
    """One thought."""

    text: str  # its tokens, decoded
    reward: float  # nats, how much likelier it made the true tokens that follow
    weight: float  # mixing weight of the next token's prediction


@dataclass(frozen=True)
class Token:
    """One token of a text."""

    text: str  # decoded: any characters, or none
    gain: float | None  # nats, NLL without thoughts minus with (their mean); None: not predicted
    nll: float | None  # nats, without thoughts
    thoughts: tuple[Thought, ...]  # those before this token, after the previous one


@dataclass(frozen=True)
class Passage:
    """A text as the model read it."""

    title: str
    tokens: tuple[Token, ...]

    def gains(self) -> list[tuple[float, int]]:
        """(gain, place) of the tokens whose gain is known, largest |gain| first."""
        gains = ((token.gain, i) for i, token in enumerate(self.tokens))
        known = [(gain, i) for gain, i in gains if gain is not None and not math.isnan(gain)]
        return sorted(known, key=lambda item: -abs(item[0]))


def level(gain: float | None) -> int:
    """How many of LEVELS a gain reaches; negative for a loss, 0 for None and nan."""
    if gain is None or math.isnan(gain):
        return 0
    return int(math.copysign(bisect_right(LEVELS, abs(gain)), gain))


def shown(text: str) -> list[str]:
    """Each character, or a mark where one does not show: controls, formats, surrogates."""
    kept = JOINERS if text.strip(JOINERS) else ""
    return [
        char
        if char.isprintable() or char in kept or unicodedata.category(char) == "Zs"
        else MARKS.get(char, char.encode("unicode_escape").decode())
        for char in text
    ]


def line(text: str) -> str:
    """Text on one line, with its marks; `EMPTY` if there is nothing."""
    return "".join(shown(text)) or EMPTY


def number(value: float | None, sign: str = "+") -> str:
    """Two decimals; `sign` as in format(): "+" for differences, "-" for the rest."""
    if value is None:
        return "–"
    large = math.isfinite(value) and abs(value) >= 1000
    text = f"{value:{sign}.1e}" if large else f"{value:{sign}z.2f}"
    return "nan" if math.isnan(value) else text.replace("-", "−").replace("inf", "∞")


def page(title: str, about: Mapping[str, str], passages: Sequence[Passage]) -> str:
    """A whole HTML document that shows passages, each token shaded by its gain.

    Args:
        title: heading of the page.
        about: names and values for the top: model, data, settings, counts.
        passages: in the order to show.
    """
    facts = (_tagged("dt", _text(k)) + _tagged("dd", _text(v)) for k, v in about.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(line(title))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{_text(title)}</h1>\n<dl>{_tagged('div', *facts)}</dl>\n</header>\n"
        f"{LEGEND}\n<main>\n{''.join(map(_section, range(len(passages)), passages))}</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _text(text: str, breaks: bool = False) -> str:
    """Text as HTML; `breaks` keeps line breaks and tabs too, after their marks."""
    parts = []
    for char, glyph in zip(text or " ", shown(text) or [EMPTY], strict=True):
        plain = html.escape(char) if glyph == char else f"<i>{glyph}</i>"
        parts.append(plain + char if breaks and char in "\n\t" else plain)
    return "".join(parts)


def _shade(gain: float | None) -> str:  # classes of a token: h1 to h4 helped, x1 to x4 hurt
    reached = level(gain)
    return f"t {'h' if reached > 0 else 'x'}{abs(reached)}" if reached else "t"


def _section(index: int, passage: Passage) -> str:
    tokens = "".join(_token(f"n{index}-{i}", token) for i, token in enumerate(passage.tokens))
    return (
        f'<section aria-labelledby="s{index}">\n<h2 id="s{index}">{_text(passage.title)}</h2>\n'
        f'<div class="text">{tokens}</div>\n{_most(passage)}</section>\n'
    )


def _token(name: str, token: Token) -> str:
    """A token and, where there is something to say, the panel that focus or pointer opens."""
    text, shade = _text(token.text, breaks=True), _shade(token.gain)
    if token.gain is None and token.nll is None and not token.thoughts:
        return f'<span class="{shade}">{text}</span>'
    rows = [_tagged("th", *HEADS[3:]), *map(_row, token.thoughts)]
    table = f"<table>{_tagged('tr', *rows)}</table>" if token.thoughts else ""
    return (
        f'<span class="{shade}" tabindex="0" aria-describedby="{name}">{text}</span>'
        f'<div class="pop" id="{name}" role="tooltip" tabindex="-1">'
        f'<p class="{shade}">{_text(token.text)}</p><p>gain <b>{number(token.gain)}</b>,'
        f" NLL without thoughts <b>{number(token.nll, '-')}</b> nats</p>{table}</div>"
    )


def _tagged(tag: str, *contents: str) -> str:
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)


def _row(thought: Thought) -> str:
    numbers = number(thought.reward), number(thought.weight, "-")
    return _tagged("td", _text(thought.text), *numbers)


def _most(passage: Passage) -> str:
    """The table under a passage, which print keeps: the tokens that thinking changed most."""
    if not (gains := passage.gains()):
        return ""
    bodies = []
    for gain, place in gains[:FEW]:
        token = passage.tokens[place]
        thoughts = sorted(token.thoughts, key=lambda x: (math.isnan(x.reward), -abs(x.reward)))
        rows = [_row(thought) for thought in thoughts[:FEW]] or [_tagged("td", *"–––")]
        if len(thoughts) > FEW:
            rows.append(
                f'<td class="c" colspan="3">and {len(thoughts) - FEW} with less |reward|</td>'
            )
        before = "".join(x.text for x in passage.tokens[:place])
        start = "…" * (len(before) > CONTEXT) + _text(before[-CONTEXT:]) if before else ""
        tall = f'rowspan="{len(rows)}"'
        rows[0] = (
            f'<th scope="rowgroup" {tall}><span class="c">{start}</span>'
            f'<span class="{_shade(gain)}">{_text(token.text)}</span></th><td {tall}>'
            f"{number(gain)}</td><td {tall}>{number(token.nll, '-')}</td>{rows[0]}"
        )
        bodies.append(f"<tbody>{_tagged('tr', *rows)}</tbody>\n")
    return (
        f'<div class="most"><table><caption>Largest gains and losses of {len(gains)} predicted'
        f" tokens; their mean gain is {number(sum(x for x, _ in gains) / len(gains))}</caption>\n"
        f"<thead>{_tagged('tr', _tagged('th', *HEADS))}</thead>\n{''.join(bodies)}</table></div>\n"
    )


HEADS = ("token", "gain", "NLL", "thought", "reward", "weight")
SCALE = "".join(
    f'<li><span class="{_shade(end)}"></span>{f"{end:+g}".replace("-", "−") if end else 0}</li>'
    for end in (*(-end for end in reversed(LEVELS)), 0, *LEVELS)
)
LEGEND = f"""<aside><h2>Gain in nats</h2><p>How much likelier its thoughts made a token.</p>
<ul class="scale">{SCALE}</ul>
<p class="ends"><span>hurt, dashed</span><span>helped, solid</span></p><p class="hint">Point at a
token, or go there with Tab and arrow keys, to see what was thought before it.</p></aside>"""
STYLE = """
:root { color-scheme: light; --paper: #fdfcfa; --ink: #1c1d20; --soft: #5d5f66; --line: #d9d6cf;
  --h: #1f5f99; --h1: #e8f1fa; --h2: #cbe1f5; --h3: #9dc9ee; --h4: #6cb0e6;
  --x: #a34d00; --x1: #fdf0df; --x2: #fbdcb5; --x3: #f7bd7c; --x4: #f19a45; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark;
  --paper: #16181b; --ink: #ecebe7; --soft: #a3a6ad; --line: #383b41;
  --h: #7db8ec; --h1: #182a3b; --h2: #173a5a; --h3: #174c7c; --h4: #1a5f9e;
  --x: #f0a35c; --x1: #33261a; --x2: #4b321a; --x3: #684217; --x4: #875212; } }
html { -webkit-text-size-adjust: 100%; scroll-padding-bottom: calc(45vh + 2rem); }
body { margin: 0 auto; padding: 2rem 1.25rem 50vh; max-width: 38rem; overflow-wrap: anywhere;
  font: 1em/1.5 Charter, Palatino, Georgia, serif; background: var(--paper); color: var(--ink); }
h1, h2, p { font-size: 1em; margin: 0 0 .4rem; } section { margin-top: 2.25rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: 1rem; } dl, dd { margin: 0; }
h1, h2, dd, dt, .text, .pop p, th, td { unicode-bidi: plaintext; }
dl div { display: grid; grid-template-columns: minmax(6rem, 1fr) 3fr; gap: 1rem;
  padding: .2rem 0; border-bottom: 1px solid var(--line); }
dt, .c, aside p, caption, thead th, .pop th { color: var(--soft); }
aside { font-size: .875rem; margin: 1.75rem 0; } aside > * { margin: 0; }
.scale { display: grid; grid-template-columns: repeat(9, 1fr); margin: .4rem 0 0; padding: 0;
  list-style: none; text-align: center; font-size: .75rem; }
.scale span { display: block; box-sizing: border-box; height: 1.25rem; }
.ends { display: flex; justify-content: space-between; margin-bottom: .8rem; }
.text { font-size: 1.125rem; line-height: 2; white-space: break-spaces; tab-size: 4; }
.t { border-radius: 2px; padding: .15em 0 .05em; box-shadow: inset -1px 0 var(--paper);
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.h1 { background: var(--h1); } .h2 { background: var(--h2); } .h3 { background: var(--h3); }
.h4 { background: var(--h4); } .h1, .h2, .h3, .h4 { border-bottom: 2px solid var(--h); }
.x1 { background: var(--x1); } .x2 { background: var(--x2); } .x3 { background: var(--x3); }
.x4 { background: var(--x4); } .x1, .x2, .x3, .x4 { border-bottom: 2px dashed var(--x); }
i { font: .85em system-ui, "DejaVu Sans", sans-serif; color: var(--soft); direction: ltr;
  unicode-bidi: isolate; -webkit-user-select: none; user-select: none; } .t i { color: inherit; }
.text > .t:hover, .pop > .t { outline: 1px solid var(--soft); }
.text > .t:focus { outline: 2px solid var(--ink); outline-offset: 1px; }
.pop { display: none; position: fixed; z-index: 1; inset: auto 0 0; max-height: 45vh;
  overflow: auto; padding: .6rem max(1.25rem, calc(50% - 19rem)); background: var(--paper);
  border-top: 1px solid var(--soft); font-size: .875rem; line-height: 1.4; white-space: normal; }
.t:focus + .pop, .t:hover + .pop, .pop:hover, .pop:focus { display: block; }
main:has(.text > .t:hover) .t:focus:not(:hover) + .pop, .off .pop.pop { display: none; }
.pop > .t { display: inline-block; white-space: pre-wrap; padding: .1em .25em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { vertical-align: baseline; padding: .12rem 0 .12rem .7rem; text-align: right;
  white-space: nowrap; font-weight: 400; }
th:first-child, .pop td:first-child { padding-left: 0; } .most { overflow-x: auto; }
th:first-child, th:nth-last-child(3), td:nth-last-child(3), .c, caption { text-align: left; }
td:nth-last-child(3), tbody th[scope] { white-space: pre-wrap; font-size: .92em;
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.most table { font-size: .8125rem; margin-top: .6rem; } thead th:nth-child(3n+1) { width: 30%; }
.most th:nth-last-child(3), .most td:nth-last-child(3), td.c { padding-left: 1.2rem; }
.most tbody { border-top: 1px solid var(--line); break-inside: avoid; }
@media screen and (min-width: 62rem) { html { scroll-padding-bottom: 0; }
  body { display: grid; grid-template: auto 1fr / 38rem 19rem; column-gap: 2.5rem;
    max-width: none; padding-bottom: 4rem; justify-content: center; }
  aside { grid-area: 1 / 2 / 3; align-self: start; position: sticky; top: 2rem; margin: 0; }
  .pop { inset: 9.5rem auto auto calc(50% + 10.75rem); width: 19rem; padding: .6rem 0;
    max-height: calc(100vh - 12rem); min-height: 5rem; border-top-color: var(--line); } }
@media print { @page { margin: 2cm; } .pop.pop, .hint { display: none !important; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } h2, caption { break-after: avoid; } }
"""
SCRIPT = """
const tokens = [...document.querySelectorAll(".text > .t[tabindex]")], body = document.body;
const stop = (token) => { // Tab reaches one token of a text, arrow keys the others
  for (const other of token.parentNode.children) if (other.tabIndex === 0) other.tabIndex = -1;
  token.tabIndex = 0;
};
tokens.toReversed().forEach(stop);
addEventListener("mouseover", ({ target }) => target.closest(".t") && body.classList.remove("off"));
addEventListener("focusin", ({ target }) => {
  if (!tokens.includes(target)) return;
  body.classList.remove("off");
  stop(target); target.scrollIntoView({ block: "nearest" });
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") body.classList.add("off");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = tokens.indexOf(event.target);
  if (at < 0 || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  const panel = event.target.nextSibling, long = panel.scrollHeight > panel.clientHeight;
  const down = long && { ArrowDown: 40, ArrowUp: -40 }[event.key];
  if (step || down) event.preventDefault();
  if (down) panel.scrollBy(0, down);
  if (step) tokens[at + step]?.focus();
});
"""
POLICY = "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'".format(
    *(b64encode(sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT))
)


def terminal(passage: Passage, color: bool, width: int = 100) -> str:
    """A passage for a terminal, then the tokens that thinking changed most.

    Args:
        passage: nothing in it reaches the terminal as a control character.
        color: shade tokens by their gain and underline what was hurt; if False, tokens that gained
            or lost at least LEVELS[1] nats stand in brackets with their gain.
        width: columns of a line, at least NARROWEST.
    """
    width = max(width, NARROWEST)
    cells = [cell for token in passage.tokens for cell in _terminal_token(token, color)]
    lines = [_fit(line(passage.title), width), "", *_wrapped(cells, width)]
    if gains := passage.gains()[:FEW]:
        lines += ["", f"{'gain':>8} {'weight':>8}  {'token':14}best thought"]
    for token in (passage.tokens[place] for _, place in gains):
        thoughts = sorted(token.thoughts, key=lambda x: (math.isnan(x.reward), -x.reward))
        text, weight = (line(thoughts[0].text), thoughts[0].weight) if thoughts else ("–", None)
        row = f"{number(token.gain):>8} {number(weight, '-'):>8}  {_fit(line(token.text), 12)}  "
        lines.append(row + _fit(text, width - columns(row)))
    return "\n".join(text.rstrip(" ") for text in lines)


def _terminal_token(token: Token, color: bool) -> Iterator[tuple[str, str]]:
    """(what to write, its colours) one by one; a line break is a piece of its own."""
    reached, glyphs = level(token.gain), shown(token.text) or [EMPTY]
    if color or abs(reached) < 2:
        shade = f"38;5;16;48;5;{COLORS[reached]}{';4' * (reached < 0)}" if color and reached else ""
        for char, glyph in zip(token.text or " ", glyphs, strict=True):
            yield from [(glyph, shade), ("\n", "")] if char == "\n" else [(glyph, shade)]
        return
    text = "".join(glyphs)
    blank = len(text) - len(text.lstrip(" ") or text)
    pieces = [*text[:blank], "[", *text[blank:], f" {number(token.gain)}]"]
    yield from ((piece, "") for piece in pieces + ["\n"] * ("\n" in token.text))


def _wrapped(cells: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Lines of at most `width` columns, broken after a space where there is one."""
    row, used = [], 0
    for cell in [*cells, ("\n", "")]:
        end = cell[0] == "\n"
        while end or used + columns(cell[0]) > width:
            spaces = (i for i in range(len(row), 0, -1) if row[i - 1][0] == " ")
            cut = len(row) if end else next(spaces, len(row))
            runs = groupby(row[:cut], key=lambda item: item[1])
            texts = ((shade, "".join(piece for piece, _ in run)) for shade, run in runs)
            yield "".join(f"\x1b[{shade}m{x}\x1b[0m" if shade else x for shade, x in texts)
            row, used = row[cut:], sum(columns(piece) for piece, _ in row[cut:])
            end = False
        if cell[0] != "\n":
            row.append(cell)
            used += columns(cell[0])


def columns(text: str) -> int:
    """How wide a terminal shows it."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)


def _fit(text: str, width: int) -> str:
    """Text cut or filled to `width` columns."""
    if columns(text) > width:
        ends = accumulate(map(columns, text))
        text = "".join(char for char, end in zip(text, ends, strict=True) if end < width) + "…"
    return text + " " * (width - columns(text))
