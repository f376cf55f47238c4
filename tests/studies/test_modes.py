"""modes: a flag that nothing would read is refused, and every flag says who reads it."""

import argparse
import re

import pytest

import evaluate
from qs.studies.modes import FIRST, MODES, READ_BY, asked, refuse_unread

NOTHING = dict.fromkeys(FIRST, None) | {"votes": 0}


def test_every_flag_of_evaluate_says_who_reads_it(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    options = capsys.readouterr().out.split("options:")[1]
    flags = {name.replace("-", "_") for name in re.findall(r"^  --([a-z-]+)", options, re.M)}
    assert flags == set(READ_BY)
    assert {mode for readers in READ_BY.values() for mode in readers.split()} == set(MODES)


@pytest.mark.parametrize(
    ("given", "modes"),
    [
        ({}, {"score"}),
        ({"controls": "RUN", "tasks": "text"}, {"controls"}),
        ({"plot": "RUN"}, {"plot"}),
        ({"tasks": "text"}, {"text"}),
        ({"tasks": "gsm8k"}, {"sets"}),
        ({"tasks": "gsm8k,text", "votes": 3}, {"sets", "text", "votes"}),
        ({"generate": "1 + 1"}, {"generate"}),
    ],
)
def test_what_is_asked_for_is_what_flags_say(given, modes):
    assert asked(argparse.Namespace(**NOTHING | given), "text") == modes


@pytest.mark.parametrize("name", READ_BY)
def test_a_flag_is_taken_where_it_is_read_and_refused_elsewhere(name):
    readers = set(READ_BY[name].split())
    for mode in MODES:
        if mode in readers:
            refuse_unread([name], {mode})
        else:
            with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is read by "):
                refuse_unread([name], {mode})
    refuse_unread([name], set(MODES))
    refuse_unread([], set())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--controls R --thoughts 3", "--thoughts is read by a model alone, --plot, --tasks with"),
        ("--controls R --tasks text", "--tasks is read by --tasks with a question set, --tasks te"),
        ("--plot R --show 1", "--show is read by a model alone; expected none with --plot, so"),
        ("R --seeds 1", "--seeds is read by --controls; expected none with a model alone"),
        ("R --votes 0", "--votes is read by --tasks with a question set"),
        ("R --tasks gsm8k --temperature 1", "--temperature is read by --generate, --votes"),
        ("R --tasks text --limit 3", "--limit is read by --tasks with a question set"),
        ("R --generate 1 --data D", "--data is read by"),
        ("R --max-tokens 3", "--max-tokens is read by --generate"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused_in_one_line(flags, message, capsys):
    assert evaluate.main(flags.split()) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
