"""Ranks: one that is killed or stopped ends the job soon, and the last words say what to do."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from faulty import damage
from tiny import ROOT, log, run, train

from qs.training import distributed, heartbeat

SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import train
from qs.training import heartbeat
heartbeat.EVERY, heartbeat.SILENCE = 0.2, 4.0
Path(sys.argv[1], "pid-" + os.environ["RANK"]).write_text(str(os.getpid()))
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("how", "victim", "says"),
    [
        (signal.SIGKILL, 1, "error: rank 0 of 2: another rank has ended or is out of reach ("),
        (signal.SIGSTOP, 1, "error: rank 1 of 2 (process {pid} on "),
        pytest.param(
            *(signal.SIGSTOP, 0, "error: rank 0 of 2 (process {pid} on "), marks=pytest.mark.slow
        ),
    ],
    ids=["killed", "stopped", "first-stopped"],
)
def test_a_lost_rank_ends_the_job_with_words_of_ours(tiny, tmp_path, how, victim, says):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    flags = tiny.flags(tmp_path / "out", "--steps=100000", "--eval-rows=0", "--save-every=2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # it looks after its ranks seldom enough that they find out first, and are not ended by it
    command = [*torchrun, "--nproc-per-node=2", "--monitor-interval=2"]
    with subprocess.Popen(
        [*command, str(script), str(tmp_path), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        while not list(tmp_path.glob("out/*/step_*")):
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
        pid = int((tmp_path / f"pid-{victim}").read_text())
        os.kill(pid, how)
        began = time.monotonic()
        said = next(x for x in iter(job.stderr.readline, "") if x.startswith("error: "))
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)  # as torchrun does, after 30 s
        job.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert job.returncode
    assert said.startswith(says.format(pid=pid)), said
    assert heartbeat.AGAIN in said
    (run,) = (tmp_path / "out").iterdir()
    assert train.files.saved_steps(run)


RESUMING = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import train
from qs.model import folders
rank, only, notes, run = os.environ["RANK"], *sys.argv[1:]
damage_of_step, resume = folders.damage_of_step, train.Trainer.resume
def damage(step, training=True):
    if (rank, step.name) == (only, "step_000004"):
        return f"{{step}}: damaged"
    return damage_of_step(step, training)
def noting(trainer):
    Path(notes, rank).write_text(trainer.start.name)
    resume(trainer)
folders.damage_of_step, train.Trainer.resume = damage, noting
sys.exit(train.main(["--resume", run]))
"""


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return run(out, tiny.flags(out, "--steps=5", "--save-every=2", "--eval-rows=0", "--keep=3"))


@pytest.mark.parametrize("only", ["", "1"], ids=["on-disk", "as-the-second-alone-sees-it"])
def test_ranks_fall_back_to_the_same_step_and_say_so_once(straight, tmp_path, only):
    begun, script, notes = tmp_path / "begun", tmp_path / "script.py", tmp_path / "notes"
    shutil.copytree(straight, begun)
    shutil.rmtree(begun / "step_000005")
    (begun / "results.json").unlink()
    if not only:
        damage(begun / "step_000004" / "model.safetensors", random.Random(0))
    script.write_text(RESUMING.format(root=str(ROOT)))
    notes.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), only, str(notes), str(begun)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [(notes / rank).read_text() for rank in "01"] == ["step_000002"] * 2
    assert done.stderr.count(f"taking {begun / 'step_000002'}, the newest that is whole") == 1
    assert done.stderr.count("step_000004.damaged; remove it") == 1
    assert sorted(train.files.saved_steps(begun)) == [2, 4, 5]
    assert [x["step"] for x in log(begun)] == [1, 2, 3, 4, 5]


@pytest.fixture
def alone(monkeypatch):
    """A group of one process."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def test_who_was_stopped_itself_accuses_nobody(alone, monkeypatch):
    said, times = [], iter([0.0, 1.0, 100.0, 104.0, 108.0, 112.0])
    monkeypatch.setattr(heartbeat, "SILENCE", 10.0)
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(heartbeat, "_end", lambda problem: said.append(problem))
    clock = SimpleNamespace(monotonic=lambda: next(times, 112.0))
    monkeypatch.setattr(heartbeat, "time", clock)
    beat = heartbeat.Heartbeat(0, 2)
    beat.thread.join(0.5)
    beat.stop()
    assert said  # silent from 100 to 112
    assert said[0] == "rank 1 of 2 (which never began) has not been heard from for 12 s"


def test_a_rank_that_left_as_it_should_is_not_missed(alone, monkeypatch):
    said = []
    monkeypatch.setattr(heartbeat, "SILENCE", 0.05)
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(heartbeat, "_end", lambda problem: said.append(problem))
    heartbeat.Heartbeat(1, 2).stop()
    first = heartbeat.Heartbeat(0, 2)
    time.sleep(0.3)
    first.stop()
    assert not said


def test_only_errors_of_lost_ranks_are_told_in_words(monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"), distributed.lost_ranks_told():
        raise RuntimeError("a bug")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    with pytest.raises(RuntimeError, match="a bug"), distributed.lost_ranks_told():
        raise RuntimeError("a bug")
    told = pytest.raises(ValueError, match="^rank 3 of 8: another rank .*--resume$")
    with told, distributed.lost_ranks_told():
        raise RuntimeError("[pair.cc:537] Connection closed by peer [127.0.0.1]:1")
