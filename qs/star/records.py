"""What a run of STaR logged of each round: read whatever the log holds, and set in a table."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qs import files
from qs.settings import is_of
from qs.tables import Table


def round_records(run: Path, last: int) -> list[dict[str, Any]]:
    """The records of rounds 0 (the untrained model) to `last`, those that the log has.

    Lines that are no such record, or are not like the others, are named on stderr and left out;
    rounds that are missing before the last one that is there are named as well.
    """
    found = [record for record in files.read_log(run) if "round" in record]
    sound = [record for record in found if _is_round(record, last)]
    groups = Counter(tuple(record["accuracy"]) for record in sound).most_common(1)
    rounds: dict[int, dict[str, Any]] = {}
    for record in found:
        if record in sound and tuple(record["accuracy"]) == groups[0][0]:
            rounds.setdefault(record["round"], record)
        else:
            what = f"expected one of rounds 0 to {last}, found {str(record)[:60]}"
            print(f"{run / files.LOG}: {what}; passed over", file=sys.stderr)
    if missing := {*range(max(rounds, default=0))} - rounds.keys():
        what = f"expected every round, found none of {', '.join(map(str, sorted(missing)))}"
        print(f"{run / files.LOG}: {what}; going on without them", file=sys.stderr)
    return [rounds[number] for number in sorted(rounds)]


def _is_round(record: dict[str, Any], last: int) -> bool:
    """Whether a record has a round's number, shares of right answers, and numbers beside them."""
    shares = record.get("accuracy")
    numbers = [value for name, value in record.items() if name != "accuracy"]
    return (
        type(record["round"]) is int
        and 0 <= record["round"] <= last
        and is_of(numbers, list[float | None])  # null: it was not finite
        and isinstance(shares, dict)
        and is_of([*shares.values()], list[float])
    )


def minutes(record: dict[str, Any]) -> float:
    """What a round took, generating, training and evaluation together."""
    return sum(value or 0 for name, value in record.items() if name.endswith("_seconds")) / 60


def rounds_table(records: Sequence[dict[str, Any]]) -> Table:
    """Rounds of STaR: what was kept, and accuracy on held-out problems by group, in %."""
    counts = ("round", "problems", "kept", "rationalized", "rationalized_kept", "steps")
    groups = records[0]["accuracy"]
    rows = [
        (
            *(str(record.get(name, "-")) for name in counts),
            f"{minutes(record):.1f}",
            *(f"{100 * record['accuracy'][group]:.1f}" for group in groups),
        )
        for record in records
    ]
    # as wide as 100.0: rows are printed one by one
    shares = (f"{group:>5}" for group in groups)
    heads = ("round", "problems", "kept", "hinted", "kept", "steps", "minutes", *shares)
    return Table("", heads, rows)
