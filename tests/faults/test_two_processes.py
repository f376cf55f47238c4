"""Two processes: the second that would write is refused in one line; reading is never refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT, contents, run, train

import evaluate
from qs.data import __main__ as data

HOLDS = """
import sys, time
from pathlib import Path
from qs.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
SUMS = ["--limit=1", "--samples=1", "--thoughts=1", "--device=cpu"]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return run(out, tiny.flags(out, "--steps=2", "--save-every=1", "--eval-rows=1"))


@pytest.fixture
def begun(trained, tmp_path):
    """A run with a step to do."""
    copy = shutil.copytree(trained, tmp_path / "begun")
    shutil.rmtree(copy / "step_000002")
    (copy / "results.json").unlink()
    return copy


@pytest.fixture
def held():
    """What makes another process hold a lock until the test ends."""
    started = []

    def holding(path) -> int:
        command = [sys.executable, "-c", HOLDS, str(path)]
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(other)
        assert other.stdout.readline() == "held\n"
        return other.pid

    yield holding
    for other in started:
        other.kill()
        other.communicate()


def refused(capsys, main, words, pid, where=""):
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    expected = rf"error: .*{where}: expected no other process that writes here, found process "
    assert re.match(rf"{expected}{pid} on .+, since 20.+; wait for its end, or end it", last), last


def test_a_run_that_another_process_trains_is_refused_and_evaluated(begun, held, capsys):
    pid = held(begun / ".lock")
    before = contents(begun)
    refused(capsys, train.main, ["--resume", begun], pid)
    assert contents(begun) == before
    assert evaluate.main(["score", str(begun), "--rows=1"]) == 0
    assert evaluate.main(["tasks", str(begun), "arithmetic", *SUMS]) == 0


def test_a_run_tells_others_while_it_trains_and_no_more_after(begun, monkeypatch):
    step, seen = train.Trainer.step, []

    def looking(trainer):
        seen.extend(path.name for path in trainer.folder.glob(".*"))
        return step(trainer)

    monkeypatch.setattr(train.Trainer, "step", looking)
    (begun / ".step_000002.tmp").mkdir()
    (begun / ".step_000002.tmp" / "half").touch()
    assert train.main(["--resume", str(begun)]) == 0
    assert seen == [".lock"]
    assert not list(begun.glob(".*"))


def test_a_run_of_star_that_another_process_makes_is_refused(tiny, tmp_path, held, capsys):
    flags = ["--objective=star", "--device=cpu", "--problems=2", "--test-problems=1", "--seq=48"]
    flags += ["--rounds=1", "--rationale-tokens=2", f"--weights={tiny.weights}", "--shots=0"]
    assert train.main([*flags, f"--out={tmp_path}"]) == 2  # nothing right to train on
    (begun,) = tmp_path.iterdir()
    assert not list(begun.glob(".*"))
    pid = held(begun / ".lock")
    before = contents(begun)
    refused(capsys, train.main, ["--resume", begun], pid)
    assert contents(begun) == before


def test_answers_that_another_process_writes_are_refused(trained, tmp_path, held, capsys):
    words = ["tasks", trained, "arithmetic", *SUMS, f"--out={tmp_path}"]
    refused(capsys, evaluate.main, words, held(tmp_path / ".answers.lock"))
    assert [path.name for path in tmp_path.iterdir()] == [".answers.lock"]


def test_a_dataset_that_another_process_prepares_is_refused(tiny, tmp_path, held, capsys):
    source = tiny.data.parent / "source.jsonl"
    words = ["prepare", source, f"--out={tmp_path / 'd'}", f"--tokenizer={tiny.tokenizer}"]
    refused(capsys, data.main, words, held(tmp_path / ".d.lock"), where="/d")
    assert not (tmp_path / "d").exists()
