"""distributed: two processes, each with half of every batch and parameter, are one."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import CLOCK, ROOT, log, make, only, run, tensors

from qs.training import distributed

FLAGS = ["--save-every", "3", "--anchors", "random", "--anchor-share", "0.5", "--micro-batch", "1"]
FLAGS += ["--beta", "100", "--lr", "1e-3", "--mixer-lr", "1e-3"]


def launch(arguments: list[str]) -> None:
    """Run train.py in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "train.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def close(one, other) -> None:
    """Each tensor as a whole: Adam makes whole steps of gradients that are noise around 0."""
    for name, tensor in tensors(one).items():
        distance = (tensors(other)[name] - tensor).norm()
        assert distance <= 0.01 * tensor.norm() + 1e-5, name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A tiny model whose rewards are above the noise, with data, and a run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    tiny = make(folder / "tiny")
    opened = run(folder / "opened", tiny.flags(folder / "opened", "--beta", "0", "--steps", "20"))
    tiny = dataclasses.replace(tiny, weights=opened)
    launch(tiny.flags(folder / "out", *FLAGS))
    return tiny, only(folder / "out")


def test_two_processes_train_what_one_does(two, tmp_path):
    tiny, both = two
    one = run(tmp_path / "one", tiny.flags(tmp_path / "one", *FLAGS))
    found, expected = log(both), log(one)
    assert (found[0]["processes"], expected[0]["processes"]) == (2, 1)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert mine == pytest.approx(other, rel=1e-2, abs=1e-4)  # rewards near 0 are float32 noise
    close(one / "step_000006", both / "step_000006")
    assert not CLOCK & found[1].keys()


def test_two_processes_go_on_from_a_checkpoint(two, tmp_path):
    _, both = two
    copy = shutil.copytree(both, tmp_path / "copy")
    shutil.rmtree(copy / "step_000006")
    launch(["--resume", str(copy)])
    close(both / "step_000006", copy / "step_000006")
    assert len(log(copy)) == len(log(both))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(two, tmp_path):
    tiny, _ = two
    with pytest.raises(AssertionError, match="--batch 3 does not divide over 2 processes"):
        launch(tiny.flags(tmp_path / "odd", "--batch", "3"))


def test_one_process_alone_sums_and_shards_nothing(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.start(torch.device("cpu")) == distributed.ALONE
    x, module = torch.ones(2), torch.nn.Linear(2, 2)
    distributed.shard(module, [], torch.float32)
    assert distributed.total(x) is x
    assert distributed.whole(x) is x
    assert type(module) is torch.nn.Linear
