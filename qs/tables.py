"""Tables that are printed on a terminal and written as Markdown: one content, two looks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qs.output import harmless


@dataclass(frozen=True)
class Table:
    """A title, columns, and remarks below.

    Attributes:
        title: one line; "" for none.
        heads: of the columns; a terminal shows no line of empty ones.
        rows: cells of each row, as many as heads.
        notes: lines below.
    """

    title: str
    heads: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()

    def right(self, column: int) -> bool:
        """Whether a column holds numbers, which stand to the right."""
        cells = [row[column] for row in self.rows]
        return all(re.match(r"[-+]?[\d.]|-?$", cell) for cell in cells)


def terminal(*tables: Table) -> str:
    """Tables in columns of spaces, a blank line between two; control characters are shown."""
    return harmless("\n\n".join(map(_in_columns, tables)))


def _in_columns(table: Table) -> str:
    lines = [table.heads, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.heads))]
    parts = [table.title] if table.title else []
    for line in lines if any(table.heads) else table.rows:
        cells = [
            cell.rjust(width) if table.right(i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        parts.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*parts, *(f"  {note}" for note in table.notes)])


def escaped(text: str) -> str:
    """Text in which Markdown sees no marks of its own."""
    return re.sub(r"([\\`*_\[\]<>|$#~&])", r"\\\1", text)


def markdown(table: Table) -> str:
    """A section with a table of Markdown."""
    lines = [f"## {escaped(table.title)}", ""] if table.title else []
    if table.heads:
        rules = ("---:" if table.right(i) else "---" for i in range(len(table.heads)))
        cells = [[escaped(cell) for cell in line] for line in (table.heads, *table.rows)]
        cells.insert(1, list(rules))
        lines += [*(f"| {' | '.join(line)} |" for line in cells), ""]
    lines += [f"- {escaped(note)}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def results_page(title: str, command: str, about: str, tables: Sequence[Table]) -> str:
    """Tables as a Markdown page that says what made it and how to read it (`about`)."""
    head = f"# {escaped(title)}\n\n```sh\n{command}\n```\n\n{about}"
    return "\n".join([head, *map(markdown, tables)])


def words(facts: Mapping[str, object]) -> str:
    """Facts by name, such as those of `environment`, on one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


# Cells


def number(value: float | None, sign: str = "") -> str:
    """A number in four decimals, or in two digits where these would show nothing; "-" for None."""
    if value is None:
        return "-"
    return f"{value:{sign}.1e}" if 0 < abs(value) < 0.5e-4 else f"{value:{sign}.4f}"


def between(ends: tuple[float, float] | None, sign: str = "") -> str:
    """Both ends of an interval; "-" for None."""
    return " to ".join(number(end, sign) for end in ends) if ends else "-"
