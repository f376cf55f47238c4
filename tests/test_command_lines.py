"""command lines: whatever is typed, a command runs or ends in one line, never in a traceback."""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny import Tiny, make, run, train

import evaluate
from qs import cli
from qs.data import __main__ as data
from qs.model import __main__ as model

# beyond any range, of another kind, or what a shell leaves over; none is long work
ABSURD = [
    "1e38",
    "inf",
    "-inf",
    "nan",
    "-1",
    "1e-320",
    "--",
    "",
    "x",
    "0x10",
    "9223372036854775808",
]
ABSURD += [
    "1000000000000",
    "99999999999999999999999999",
    "1e400",
    "\x1b[2J",
    "é",
    "-",
    "1,2",
    "None",
]
SMALL = ["0", "1", "2", "0.5"]
KEPT = {
    "--help",
    "-h",
    "--device",
    "--jobs",
    "--workers",
    "--preset",
    "--seeds",
    "--documents",
    "--compile",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run."""
    out = tmp_path_factory.mktemp("trained")
    return run(out, tiny.flags(out, "--steps=1", "--eval-rows=1"))


def flags_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What can be drawn of a parser: flags but those that are kept."""
    named = [action for action in parser._actions if action.option_strings]
    return [action for action in named if not KEPT & set(action.option_strings)]


def drawn(numbers: random.Random, actions: Sequence[argparse.Action]) -> list[str]:
    """One to three flags with values that fit or do not."""
    words = []
    for action in numbers.choices(actions, k=numbers.randint(1, 3)):
        flag = numbers.choice(action.option_strings)
        values = [*ABSURD, *SMALL * 3, *(action.choices or ()) * 4]
        value = numbers.choice(values)
        if action.nargs == 0 and numbers.random() < 0.9:
            words.append(flag)
        else:
            words += [f"{flag}={value}"] if numbers.random() < 0.7 else [flag, value]
    return words


def parser_of_train() -> argparse.ArgumentParser:
    parser = cli.Parser("train.py")
    cli.add_flags(parser)
    parser.add_argument("--resume")
    return parser


def commands(tiny: Tiny, trained: Path, out: Path) -> list[tuple[Callable, list[str], list]]:
    """Every command: its main, arguments that are right, and flags to draw."""
    source = tiny.data.parent / "source.jsonl"
    flags = tiny.flags(out / "runs", "--steps=1", "--batch=1", "--eval-rows=1", "--seq=8")
    asked = {
        "score": [str(trained), "--rows=1"],
        "tasks": [str(trained), "arithmetic", "--limit=1", f"--out={out / 'o'}", "--samples=1"],
        "text": [str(trained), "--rows=1", f"--out={out / 'o'}"],
        "generate": [str(trained), "1 plus", "--max-tokens=2"],
        "compare": [str(trained), "--on=arithmetic", "--problems=2"],
    }
    parsers = evaluate.command_line()[1]
    found = [(train.main, flags, flags_of(parser_of_train()))] * 3
    found += [
        (evaluate.main, [name, *words], flags_of(parsers[name])) for name, words in asked.items()
    ]
    made = f"--out={out / 'made'}"
    sizes = ["--dim=8", "--layers=1", "--heads=1", "--hidden-dim=8", "--max-positions=32"]
    given = {
        data: {
            "tokenizer": [str(source), made, "--vocab=300"],
            "prepare": [str(source), made, f"--tokenizer={tiny.tokenizer}", "--workers=1"],
            "synthetic": [made, "--documents=2", "--tests=1"],
            "arithmetic": [made, "--documents=2", "--tests=1"],
        },
        model: {
            "init": [made, f"--tokenizer={tiny.tokenizer}", *sizes],
            "export": [str(trained), "--layout=hf", made],
        },
    }
    for module, lines in given.items():
        (choices,) = (a.choices for a in module._parser()._actions if isinstance(a.choices, dict))
        found += [(module.main, [name, *lines[name]], flags_of(choices[name])) for name in lines]
    return found


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 300), pytest.param(1, 5000, marks=pytest.mark.slow)]
)
def test_every_command_line_ends_in_a_run_or_in_one_line(
    tiny, trained, tmp_path, monkeypatch, capsys, seed, count
):
    monkeypatch.chdir(tmp_path)
    numbers, ends = random.Random(seed), {0: 0, 2: 0}
    known = commands(tiny, trained, tmp_path)
    for number in range(count):
        main, right, actions = known[number % len(known)]
        words = [*right, *drawn(numbers, actions)]
        try:
            status = main(words)
        except BaseException as error:
            raise AssertionError(f"{words}: {error!r}") from error
        told = capsys.readouterr().err.replace("\r", "\n").split("\n")
        complaints = [line for line in told if line.startswith("error: ")]
        assert len(complaints) == (status != 0), (words, told)
        assert "\x1b[2J" not in "".join(complaints), words
        ends[status] += 1
        shutil.rmtree(tmp_path / "made", ignore_errors=True)  # or the next one is refused for it
    assert min(ends.values()) > count / 10
