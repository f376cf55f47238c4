"""What a model thought before each token of some text -> one HTML page.

`page.html`, `page.css` and `page.js` are joined into one file that needs nothing from elsewhere;
without its script only keys are lost. Text is data: between tags, never in an attribute, style or
script.
"""

import html
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from string import Template

from qs.atomic import write_text
from qs.evaluation.thoughts import (
    EARNED,
    EMPTY,
    FEW,
    LEVELS,
    WORKS,
    Passage,
    Passages,
    PassageToken,
    Thought,
    gain_level,
    one_line,
    two_decimals,
)
from qs.output import visible

PAGE, PAGE_ROWS = "thoughts.html", 12  # of a run, and rows of held-out text on it
LEADING = 16  # characters before a token in the table under a passage
HEADS = ("token", "gain", "NLL", "thought", "reward", "weight")


def write_thoughts(run: Path, about: Mapping[str, str], passages: Passages, told: str = "") -> Path:
    """Write a page of a run; `about` as of `thoughts_page`, `told` goes into its name."""
    path, title = run / PAGE.replace(".", f"{told}."), "What the model thought"
    write_text(path, thoughts_page(title, about, passages.passages, passages.earned))
    return path


def thoughts_page(
    title: str,
    about: Mapping[str, str],
    passages: Sequence[Passage],
    earned: str = EARNED["information-gain"],
) -> str:
    """A whole HTML document that shows passages in their order, each token shaded by its gain.

    `about` has names and values for its top: model, data, settings, counts; `earned` says what a
    reward is.
    """
    style, script = _part("page.css"), _part("page.js")
    facts = (_tagged("dt", _text(k)) + _tagged("dd", _text(v)) for k, v in about.items())
    scale = "".join(
        f'<li><span class="{_shade(end)}"></span>{f"{end:+g}".replace("-", "−") if end else 0}</li>'
        for end in (*(-end for end in reversed(LEVELS)), 0, *LEVELS)
    )
    return Template(_part("page.html")).substitute(
        # no browser runs or loads anything but these two, whatever a text holds
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        title=html.escape(one_line(title)),
        style=style,
        heading=_text(title),
        facts=_tagged("div", *facts),
        scale=scale,
        earned=_text(earned),
        sections="".join(_section(i, passage) for i, passage in enumerate(passages)),
        script=script,
    )


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _text(text: str, breaks: bool = False) -> str:
    """Text as HTML; `breaks` keeps line breaks and tabs too, after their marks."""
    parts = []
    for char, glyph in zip(text or " ", visible(text) or [EMPTY], strict=True):
        plain = html.escape(char) if glyph == char else f"<i>{glyph}</i>"
        parts.append(plain + char if breaks and char in "\n\t" else plain)
    return "".join(parts)


def _shade(gain: float | None) -> str:
    """Classes of a token: h1 to h4 helped, x1 to x4 hurt."""
    level = gain_level(gain)
    return f"t {'h' if level > 0 else 'x'}{abs(level)}" if level else "t"


def _tagged(tag: str, *contents: str) -> str:
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)


def _section(index: int, passage: Passage) -> str:
    tokens = "".join(_token(f"n{index}-{i}", token) for i, token in enumerate(passage.tokens))
    return (
        f'<section aria-labelledby="s{index}">\n<h2 id="s{index}">{_text(passage.title)}</h2>\n'
        f'<div class="text">{tokens}</div>\n{_most(passage)}</section>\n'
    )


def _token(name: str, token: PassageToken) -> str:
    """A token and, where there is something to say, the panel that focus or pointer opens."""
    text, shade = _text(token.text, breaks=True), _shade(token.gain)
    if token.gain is None and token.nll is None and not token.thoughts:
        return f'<span class="{shade}">{text}</span>'
    rows = [_tagged("th", *HEADS[3:]), *_thoughts(token.thoughts)]
    table = f"<table>{_tagged('tr', *rows)}</table>" if token.thoughts else ""
    return (
        f'<span class="{shade}{" a" * token.answer}" tabindex="0" aria-describedby="{name}">{text}'
        "</span>"
        f'<div class="pop" id="{name}" role="tooltip" tabindex="-1">'
        f'<p class="{shade}">{_text(token.text)}</p><p>gain <b>{two_decimals(token.gain)}</b>,'
        f" NLL without thoughts <b>{two_decimals(token.nll, '-')}</b> nats</p>{table}</div>"
    )


def _thoughts(thoughts: Sequence[Thought]) -> list[str]:
    """A row for each thought; those that look equal in all share one, which counts them."""
    rows = []
    for thought in thoughts:
        marks = f"<small>{WORKS}</small>" * thought.works
        numbers = two_decimals(thought.reward), two_decimals(thought.weight, "-")
        rows.append((_text(thought.text), marks, *numbers))
    return [
        _tagged("td", text + (f"<small>× {times}</small>" if times > 1 else "") + marks, *numbers)
        for (text, marks, *numbers), times in Counter(rows).items()
    ]


def _most(passage: Passage) -> str:
    """The table under a passage, which print keeps: the tokens that thinking changed most."""
    if not (gains := passage.gains()):
        return ""
    bodies = []
    for gain, place in passage.largest():
        token = passage.tokens[place]
        thoughts = sorted(token.thoughts, key=lambda x: (math.isnan(x.reward), -abs(x.reward)))
        rows = _thoughts(thoughts) or [_tagged("td", *"–––")]
        if left := rows[FEW:]:
            rows[FEW:] = [f'<td class="c" colspan="3">and {len(left)} with less |reward|</td>']
        before = "".join(x.text for x in passage.tokens[:place])
        start = "…" * (len(before) > LEADING) + _text(before[-LEADING:]) if before else ""
        tall = f'rowspan="{len(rows)}"'
        rows[0] = (
            f'<th scope="rowgroup" {tall}><span class="c">{start}</span>'
            f'<span class="{_shade(gain)}{" a" * token.answer}">{_text(token.text)}</span></th>'
            f"<td {tall}>"
            f"{two_decimals(gain)}</td><td {tall}>{two_decimals(token.nll, '-')}</td>{rows[0]}"
        )
        bodies.append(f"<tbody>{_tagged('tr', *rows)}</tbody>\n")
    mean = two_decimals(sum(gain for gain, _ in gains) / len(gains))
    caption = f"Gains and losses of {LEVELS[0]:g} or more, the largest of {len(gains)} predicted"
    head = f"<thead>{_tagged('tr', _tagged('th', *HEADS))}</thead>\n" if bodies else ""
    return (
        f'<div class="most"><table><caption>{caption} tokens{"" if bodies else ": none"}; mean '
        f"gain {mean}</caption>\n{head}{''.join(bodies)}</table></div>\n"
    )
