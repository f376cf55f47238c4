"""Kills: whenever a process is killed, a resumed run ends with the bits of one that never was."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest
from faulty import die_after, die_at, forked
from tiny import log, only, run, same_checkpoint, train

from qs import atomic, files

FLAGS = ["--save-every=1", "--eval-rows=1", "--steps=5"]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A run that was never killed, and how long it took."""
    out, began = tmp_path_factory.mktemp("straight"), time.monotonic()
    return run(out, tiny.flags(out, *FLAGS)), time.monotonic() - began


def draw(numbers: random.Random, in_save: bool, seconds: float):
    """How a process will be killed: in the middle of writing, or at any moment."""
    if not in_save:
        return die_after, (numbers.uniform(0.05, 1) * seconds,)
    owner, name, most = numbers.choice(
        [(atomic, "flush", 30), (os, "fsync", 30), (os, "rename", 9), (os, "replace", 9)]
    )
    return die_at, (owner, name, numbers.randint(1, most))


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_kill_loses_what_was_saved(tiny, straight, tmp_path, count):
    expected, seconds = straight
    numbers, kills, ends = random.Random(count), 0, 0
    out = tmp_path / "out"
    while kills < count or ends == 0:
        begun = out.is_dir() and any(out.iterdir()) and files.saved_steps(only(out))
        if not begun:
            shutil.rmtree(out, ignore_errors=True)
        before = max(begun, default=0) if begun else 0
        words = ["--resume", str(only(out))] if begun else tiny.flags(out, *FLAGS)
        how, arguments = draw(numbers, kills % 2 == 0, seconds)

        def act(how=how, arguments=arguments, words=words, dies=kills < count):
            if dies:
                how(*arguments)
            return train.main(words)

        status = forked(act)
        assert status in (0, -9, -14), (status, how, arguments)
        kills += status < 0
        if out.is_dir() and any(out.iterdir()):
            assert before <= max(files.saved_steps(only(out)), default=0)
        if status == 0:
            ends += 1
            same_checkpoint(only(out) / "step_000005", expected / "step_000005")
            assert log(only(out)) == log(expected)
            # a kill after the last word leaves locks, which hold nobody
            assert all(path.name.endswith(".lock") for path in only(out).glob(".*"))
            results = [files.read_results(each) for each in (only(out), expected)]
            assert results[0] == results[1]
            shutil.rmtree(out)
    assert ends


def test_a_run_whose_first_checkpoint_is_removed_meanwhile_keeps_its_tokenizer(
    tiny, straight, tmp_path
):
    out = tmp_path / "out"
    assert forked(
        lambda: (die_at(train.Trainer, "step", 3), train.main(tiny.flags(out, *FLAGS)))[1]
    )
    assert [*files.saved_steps(only(out))] == [1, 2]
    assert train.main(["--resume", str(only(out))]) == 0
    assert [*files.saved_steps(only(out))] == [4, 5]
    same_checkpoint(only(out) / "step_000005", straight[0] / "step_000005")
