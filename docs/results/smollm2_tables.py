"""What the arms of run_smollm2.py came to, as Markdown:

python docs/results/smollm2_tables.py OUT/smollm2.json [OUT/smollm2.json ..]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qs.evaluation.statistics import ratio_estimate

WEIGHTS = ("0.1", "0.3", "1.0", "head")
Found = dict[str, Any]  # of an arm


def text_table(arms: dict[str, Found]) -> str:
    """Held-out text, in nats a token; differences are paired by row."""
    names = "without", "with", "gain", "own over shuffled", "own over pauses", "against plain"
    lines = head("arm", *names, "distinct", "commonest")
    for name, found in arms.items():
        kind = name.partition(", ")[0]
        plain = arms.get(f"{kind}, plain" if kind in ("bridge", "easy") else "plain")
        cells = [f"{found['nll_base']:.4f}"]
        if found["nll_mix"] is None:
            cells += [""] * 7
        else:
            cells += [f"{found['nll_mix']:.4f}", shown(found["gain"], found["gain_interval"])]
            cells += [shown(*found.get(f"own over {x}", ())) for x in ("shuffled", "pauses")]
            cells.append(shown(*compared(plain["rows"], found["rows"])) if plain else "")
            cells += [f"{found[x]:.1%}" if x in found else "" for x in ("distinct", "commonest")]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def room_table(arms: dict[str, Found]) -> str:
    """Own thoughts: mean / best of K / spread within / between positions, in nats."""
    names = "own", "true", "own over shuffled", "own over pauses", "right over wrong"
    lines = head("arm", "weight", *names)
    for name, found in arms.items():
        for weight in WEIGHTS if "room" in found else ():
            at = found["room"][weight]
            own = at["own"]
            cells = [f"{own['mean']:+.3f} / {own['best']:+.3f}"]
            cells[0] += f" / {own['within']:.2f} / {own['between']:.2f}"
            cells.append(f"{at['true']['mean']:+.3f}" if "true" in at else "")
            for other in ("own over shuffled", "own over pauses", "right over wrong"):
                cells.append(shown(*at.get(other, ()), digits=3))
            lines.append(row(name, weight, *cells))
    return "\n".join(lines)


def question_table(arms: dict[str, Found]) -> str:
    """Gold answer probability; differences of its logarithm in nats, paired by question."""
    lines = head(
        "arm", "questions", "without", "own", "shuffled", "own over without", "over shuffled"
    )
    for name, found in arms.items():
        for task in ("held-out problems", "gsm8k", "commonsense_qa"):
            if (asked := found.get(task)) is None:
                continue
            cells = [
                f"{asked[x]:.4f}" if x in asked else "" for x in ("without", "own", "shuffled")
            ]
            for other in ("without", "shuffled"):
                cells.append(shown(*asked.get(f"own over {other}, nats", ())))
            lines.append(row(name, f"{task}, {asked['questions']}", *cells))
    return "\n".join(lines)


def compared(plain: Found, other: Found) -> list[float]:
    """Nats a token that an arm with thoughts gains on plain training, and half its interval."""
    count, before, after = (
        np.array(x) for x in (plain["tokens"], plain["nll_base"], other["nll_mix"])
    )
    return list(ratio_estimate(before - after, count))


def shown(mean: float | None = None, half: float | None = None, digits: int = 4) -> str:
    """A mean and half of its interval."""
    if mean is None:
        return ""
    return f"{mean:+.{digits}f}" + (f" +- {half:.{digits}f}" if half is not None else "")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    return [row(*cells), "|" + "---|" * len(cells)]


def tables(found: dict[str, Found]) -> str:
    """All of them, of the arms that are done."""
    arms = {name: each for name, each in found.items() if name != "sizes"}
    more = {}  # and of new problems
    for name, each in arms.items():
        more[name] = each
        if "new problems" in each:
            more[f"{name}, new problems"] = each["new problems"]
    return "\n\n".join((text_table(arms), room_table(more), question_table(more)))


if __name__ == "__main__":
    found = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    print(tables({name: arm for each in found for name, arm in each.items()}))
