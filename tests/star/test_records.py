"""records: what a log of rounds lost is named, and nothing else is lost with it."""

from __future__ import annotations

import json
import random

import pytest
from faulty import mutated

from qs import files
from qs.star.records import minutes, round_records, rounds_table
from qs.tables import terminal

RECORDS = [
    {"round": n, "accuracy": {"1 digits": 0.5, "all": n / 4}, "steps": 3 * n, "heldout_seconds": 6}
    for n in range(4)
]


def log(folder, records):
    (folder / files.LOG).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    "damaged",
    [
        {"round": 1},
        RECORDS[1] | {"accuracy": {"1 digits": 0.5, "all": "x"}},
        RECORDS[1] | {"accuracy": {"1 digits": 0.5}},
        RECORDS[1] | {"steps": {}},
        RECORDS[1] | {"round": 9},
        RECORDS[1] | {"round": True},
    ],
)
def test_a_damaged_round_is_that_round_alone(tmp_path, capsys, damaged):
    log(tmp_path, [RECORDS[0], damaged, *RECORDS[2:]])
    assert round_records(tmp_path, 3) == [RECORDS[0], *RECORDS[2:]]
    said = capsys.readouterr().err.splitlines()
    assert "expected one of rounds 0 to 3, found {'round': " in said[0]
    assert said[1].endswith("expected every round, found none of 1; going on without them")


def test_rounds_are_in_order_each_once(tmp_path, capsys):
    log(tmp_path, [*RECORDS[:2], RECORDS[3], RECORDS[2], RECORDS[3] | {"steps": 1}])
    assert round_records(tmp_path, 3) == RECORDS
    assert round_records(tmp_path, 1) == RECORDS[:2]
    assert capsys.readouterr().err.count("passed over") == 3
    assert round_records(tmp_path / "elsewhere", 1) == []


def test_whatever_a_log_holds_makes_a_table(tmp_path):
    numbers = random.Random(0)
    for _ in range(300):
        log(tmp_path, changed if isinstance(changed := mutated(RECORDS, numbers), list) else [])
        if found := round_records(tmp_path, 3):
            assert terminal(rounds_table(found))
            assert sum(map(minutes, found)) <= len(found) * 1e307
