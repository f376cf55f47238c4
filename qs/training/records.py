"""What the record of a step says to a person: in the progress bar, and of collapsed thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COMMON, NATS, SAME = 0.95, 0.1, 0.99  # of thoughts: beyond one of these they have collapsed


def collapse(record: dict[str, Any]) -> str:
    """What says that the thoughts of a step have collapsed, in words; "" where they have not."""

    def number(name: str, healthy: float) -> float:  # null in the log where it was not finite
        value = record.get(name)
        return value if isinstance(value, (int, float)) else healthy

    if (top := number("thought_top", 0)) > COMMON:
        return f"one token is {top:.1%} of all sampled ones"
    if (entropy := number("thought_entropy", NATS)) < NATS:
        return f"the tokens sampled have an entropy of {entropy:.3f} nats"
    if (same := number("thought_same", 0)) > SAME:
        return f"all K thoughts are equal at {same:.1%} of positions"
    return ""


def collapse_warning(records: Sequence[dict[str, Any]]) -> str:
    """A warning if the steps of a log end with collapsed thoughts; else ""."""
    steps = [record for record in records if "thought_top" in record]
    if not steps or not (why := collapse(steps[-1])):
        return ""
    sound = [i for i, record in enumerate(steps) if not collapse(record)]
    since = steps[sound[-1] + 1 if sound else 0]["step"]
    return (
        f"warning: thoughts have collapsed, since step {since}: {why}; what they earn says nothing "
        "about thinking: try a lower --lr or --beta, or a higher --sample-temperature"
    )


def bar_text(record: dict[str, Any]) -> str:
    """The progress bar's numbers in the width of an old terminal; the log has them all.

    NLL is of the text without thoughts and gain that of the next token by one, nats a token; w is
    the mixing weight.
    """
    numbers = (
        ("nll_base", "NLL {:.3f}"),
        ("gain", "gain {:+.3f}"),
        ("reward", "reward {:+.3f}"),
        ("weight_mean", "w {:.2f}"),
    )
    parts = [form.format(record[key]) for key, form in numbers if key in record]
    return ", ".join(["COLLAPSED"] * bool(collapse(record)) + parts)
