"""A full disk: a command ends in one line, nothing saved is lost, and room lets it go on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil

import pytest
from faulty import forked
from tiny import log, only, run, same_checkpoint, train

import evaluate
from qs import files
from qs.data import __main__ as data
from qs.evaluation.exam_results import JsonLines
from qs.studies.controls import COMMENTS, keep_comments

resource = pytest.importorskip("resource")
FLAGS = ["--save-every=1", "--eval-rows=1", "--steps=3"]
SUMS = ["--limit=2", "--samples=1", "--thoughts=1", "--device=cpu", "--batch=2"]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return run(out, tiny.flags(out, *FLAGS))


def within(size: int, act):
    """Do something where no file can be larger; its exit status."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return act()

    return forked(limited)


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_without_room_ends_in_a_line_and_goes_on_with_room(tiny, straight, tmp_path, count):
    numbers, refused = random.Random(count), 0
    largest = max(path.stat().st_size for path in straight.rglob("*") if path.is_file())
    for number in range(count):
        out = tmp_path / str(number)
        size = numbers.randint(200, largest)
        status = within(size, lambda out=out: train.main(tiny.flags(out, *FLAGS)))
        assert status in (0, 2), (status, size)
        refused += status == 2
        found = only(out) if out.is_dir() and any(out.iterdir()) else None
        if found is None or not files.saved_steps(found):
            shutil.rmtree(out, ignore_errors=True)
            continue
        assert train.main(["--resume", str(found)]) == 0
        same_checkpoint(found / "step_000003", straight / "step_000003")
        assert log(found) == log(straight)
        assert not list(found.glob(".*"))
    assert refused > count / 2


def test_answers_without_room_lose_no_whole_line(straight, tmp_path):
    words = ["tasks", str(straight), "arithmetic", *SUMS]
    assert evaluate.main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    (path,) = (tmp_path / "whole").glob("arithmetic-*.jsonl")
    expected = path.read_bytes()
    for size in range(1, len(expected), len(expected) // 5):
        out = tmp_path / str(size)
        act = lambda out=out: evaluate.main([*words, f"--out={out}"])  # noqa: E731
        assert within(size, act) == 2
        begun = out / path.name
        whole = begun.read_bytes().count(b"\n") if begun.is_file() else 0
        assert len(JsonLines(begun).records()) == whole
        assert act() == 0
        assert begun.read_bytes() == expected


@pytest.mark.parametrize("size", [0, 1, 40])
def test_the_words_of_a_person_outlive_a_full_disk(tmp_path, size):
    page = tmp_path / "page.md"
    page.write_text(f"old\n{COMMENTS}\n\nmy own words\n")
    before = page.read_bytes()

    def act():
        try:
            keep_comments(page, "new " * 99)
        except OSError as error:
            return error.errno

    assert within(size, act) == errno.EFBIG
    assert page.read_bytes() == before
    assert os.listdir(tmp_path) == ["page.md"]


def test_a_lock_without_room_lets_what_is_written_say_where(tmp_path):
    def act():
        try:
            files.add_results(tmp_path, {"after": 1})
        except OSError as error:
            return int(error.filename == str(tmp_path / files.RESULTS) and error.errno)

    assert within(0, act) == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["prepare", "synthetic"])
def test_a_dataset_without_room_is_named_and_leaves_nothing(tiny, tmp_path, command):
    given = {
        "prepare": [str(tiny.data.parent / "source.jsonl"), f"--tokenizer={tiny.tokenizer}"],
        "synthetic": ["--documents=50"],
    }

    def act():
        words = io.StringIO()
        with contextlib.redirect_stderr(words):
            assert data.main([command, *given[command], f"--out={tmp_path / 'made'}"]) == 2
        return words.getvalue() != f"error: {tmp_path / 'made'}: File too large\n"

    assert within(500, act) == 0
    assert not list(tmp_path.iterdir())
