"""distributed: processes that share every batch and parameter are as one, and stop as one."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import ranks
import torch
from safetensors.torch import load_file
from tiny import CLOCK, ROOT, log, make, only, run, tensors

import train
from qs import files
from qs.training import distributed

FLAGS = ["--save-every", "3", "--anchors", "random", "--anchor-share", "0.5", "--micro-batch", "1"]
FLAGS += ["--beta", "100", "--lr", "1e-3", "--mixer-lr", "1e-3", "--end", "drawn"]


def launch(arguments: list[str], count: int = 2, script: str = "train.py") -> None:
    """Run a script in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc-per-node={count}", script, *arguments],
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


@pytest.fixture(scope="module")
def one(two, tmp_path_factory):
    """The same run of one process."""
    out = tmp_path_factory.mktemp("one")
    return run(out, two[0].flags(out, *FLAGS))


def test_two_processes_train_what_one_does(two, one):
    _, both = two
    found, expected = log(both), log(one)
    assert (files.made_by(both)["processes"], files.made_by(one)["processes"]) == (2, 1)
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-2, abs=1e-4)  # rewards near 0 are float32 noise
    close(one / "step_000006", both / "step_000006")
    assert not CLOCK & found[0].keys()


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), (1, 2), (2, 4)],
)
def test_any_number_of_processes_goes_on_from_what_any_number_saved(
    two, one, tmp_path, before, after
):
    begun = one if before == 1 else two[1]
    copy = shutil.copytree(begun, tmp_path / "copy")
    shutil.rmtree(copy / "step_000006")
    if after == 1:
        assert train.main(["--resume", str(copy)]) == 0
    else:
        launch(["--resume", str(copy)], after)
    close(one / "step_000006", copy / "step_000006")
    for mine, other in zip(log(copy), log(one), strict=True):
        assert mine == pytest.approx(other, rel=1e-2, abs=1e-4)


BFLOAT16 = ["--dtype", "bfloat16", "--eval-rows", "0"]


@pytest.fixture(scope="module")
def told(two, tmp_path_factory):
    """What each of two processes saw (see tests/ranks.py), and the first one's gradients."""
    folder = tmp_path_factory.mktemp("told")
    flags = two[0].flags(folder / "out", *FLAGS, *BFLOAT16)
    launch([str(folder), *flags], script="tests/ranks.py")
    each = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return each, load_file(folder / "gradients.safetensors"), only(folder / "out")


def test_two_processes_have_the_gradients_of_one_in_bfloat16(two, told, tmp_path):
    flags = two[0].flags(tmp_path / "out", *FLAGS, *BFLOAT16)
    expected = ranks.gradients(train.load(train.settings(flags)[0], None))
    assert told[1].keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (told[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_thinking_gathers_each_layer_once_in_bfloat16_and_gradients_are_summed_in_float32(told):
    for each in told[0]:
        traffic = each["traffic"]
        gather = f"gather torch.bfloat16 {traffic['layer']}"
        thinking, step = traffic["thinking"], traffic["step"]
        layers, root = thinking.pop(gather), list(thinking.items())
        assert layers == 2
        assert [(name.split()[:2], count) for name, count in root] == [
            (["gather", "torch.float32"], 1)  # embeddings and heads
        ]
        assert step[gather] == 3 * layers  # to think, to score, to learn
        reduced = {name: count for name, count in step.items() if name.startswith("reduce")}
        assert reduced.pop(f"reduce torch.float32 {2 * traffic['layer']}") == layers
        assert [*reduced.values()] == [1]
        assert all("float32" in name for name in reduced)


def test_processes_stop_together_where_the_disk_or_one_parameter_of_one_of_them_fails(told):
    (first, second), _, out = told
    expected = r"OSError: \[Errno 28\] the checkpoint of step 1 could not be written: it needs .*"
    assert re.fullmatch(rf"{expected} are free \(No space left on device\).*", first["full"])
    assert second["full"] == "OSError: the first process could not write a checkpoint"
    assert first["saved"] == second["saved"] == "saved"
    assert [path.name for path in out.glob("*step*")] == ["step_000001"]
    assert len([*out.glob("step_000001/optimizer-*")]) > 2
    assert first["nan"] == second["nan"]
    assert first["nan"] == (
        "ValueError: step 2 left parameters that are not finite, which are not saved; the last "
        f"good checkpoint is {out / 'step_000001'} (start again from it with --weights); lower --lr"
    )
    assert first["agreed"] == second["agreed"] == [True, False]


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(
    two, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(distributed, "start", lambda device: distributed.Ranks(count=2))
    assert train.main(two[0].flags(tmp_path / "odd", "--batch", "3")) == 2
    assert "--batch 3 does not divide over 2 processes" in capsys.readouterr().err


def test_one_process_alone_sums_and_shards_nothing(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.start(torch.device("cpu")) == distributed.ALONE
    x, module = torch.ones(2), torch.nn.Linear(2, 2)
    distributed.shard(module, [], torch.float32)
    assert distributed.total(x) is x
    assert distributed.whole(x) is x
    assert type(module) is torch.nn.Linear
