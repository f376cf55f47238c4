"""checkpoint: what bears its final name is complete, and reads back as it was written."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import batch, module, same_bits

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model import shards
from qs.training import checkpoint
from qs.training.checkpoint import load_optimizer, optimizer_tensors, save_optimizer
from qs.training.optimizer import make_optimizer
from qs.training.step import train_step

QUIET = Config(ThoughtConfig(thoughts=2, ahead=2), OptimConfig(lr=0.1), RunConfig(seq=7))


def names_of(quiet):
    return {parameter: name for name, parameter in quiet.named_parameters()}


def stepped(config=QUIET, steps=2):
    quiet = module(config.thinking)
    optimizer = make_optimizer(quiet, config.optim)
    for step in range(steps):
        train_step(quiet, optimizer, *batch(step), config, step, False)
    return quiet, optimizer


@pytest.mark.parametrize("largest", [shards.LARGEST, 500])
def test_an_optimiser_read_back_goes_on_bit_for_bit(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(shards, "LARGEST", largest)
    quiet, optimizer = stepped()
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    other = module(QUIET.thought)
    other.load_state_dict(quiet.state_dict())
    again = make_optimizer(other, QUIET.optim)
    load_optimizer(tmp_path, again, names_of(other), 2)
    for one, it in ((quiet, optimizer), (other, again)):
        train_step(one, it, *batch(9), QUIET, 9, False)
    same_bits(dict(quiet.named_parameters()), dict(other.named_parameters()))
    states = [
        optimizer_tensors(it, names_of(one)) for one, it in ((quiet, optimizer), (other, again))
    ]
    same_bits(*states)
    assert len(states[0]) == 3 * len([*quiet.parameters()])
    single = [path.name for path in tmp_path.iterdir()] == ["optimizer.safetensors"]
    assert single == (largest > 500)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_parameter_that_no_loss_reached_has_no_state_before_or_after(tmp_path, steps):
    config = Config(QUIET.thought, QUIET.optim, RunConfig(objective="plain", seq=7))
    quiet, optimizer = stepped(config, steps)
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    other = module(config.thinking)
    again = make_optimizer(other, config.optim)
    load_optimizer(tmp_path, again, names_of(other), steps)
    reached = {names_of(quiet)[p] for p in optimizer.state}
    assert reached == {names_of(other)[p] for p in again.state}
    assert not {name for name in reached if name.startswith("mixer.")}
    assert bool(reached) == (steps > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("exp_avg/start"), r"1 missing \(exp_avg/start\), 0 unexpected"),
        (lambda t: t.update(other=torch.ones(1)), r"0 missing \(none\), 1 unexpected \(other\)"),
        (
            lambda t: t.update({"exp_avg/start": torch.ones(3)}),
            r"expected exp_avg/start of dtype and shape float64 \[8\], found float32 \[3\]",
        ),
        (
            lambda t: t.update({"exp_avg/start": t["exp_avg/start"].float()}),
            r"exp_avg/start of dtype and shape float64 \[8\], found float32 \[8\]",
        ),
        (
            lambda t: t["exp_avg/start"][3:4].fill_(torch.nan),
            "expected finite numbers, found NaN or infinity in exp_avg/start; move .* away to go",
        ),
        (lambda t: t["exp_avg_sq/end"][:1].fill_(torch.inf), "infinity in exp_avg_sq/end"),
        (lambda t: t["exp_avg_sq/end"][:1].fill_(-2), "expected squares, found -2 in exp_avg_sq"),
        (lambda t: t["step/end"].fill_(3), "2 steps at most, as in trainer.json, found 3 in step/"),
        (lambda t: t["step/end"].fill_(0.5), "found 0.5 in step/end"),
    ],
)
def test_an_optimiser_whose_state_cannot_be_is_refused(tmp_path, change, message):
    quiet, optimizer = stepped()
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    stored = load_file(tmp_path / "optimizer.safetensors")
    change(stored)
    save_file(stored, tmp_path / "optimizer.safetensors")
    with pytest.raises(ValueError, match=message):
        load_optimizer(tmp_path, make_optimizer(quiet, QUIET.optim), names_of(quiet), 2)


@pytest.mark.parametrize("left", [None, 0, -1])
def test_a_missing_or_damaged_optimiser_is_refused(tmp_path, left):
    quiet, optimizer = stepped()
    path = tmp_path / "optimizer.safetensors"
    if left is not None:
        save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
        path.write_bytes(path.read_bytes()[:left])
    message = "no such file; resume needs" if left is None else "expected a safetensors file, found"
    with pytest.raises(ValueError, match=f"optimizer.safetensors: {message}"):
        load_optimizer(tmp_path, optimizer, names_of(quiet), 2)


def test_an_optimiser_without_one_of_its_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 500)
    quiet, optimizer = stepped()
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    (file := min(tmp_path.glob("optimizer-00002-of-*"))).unlink()
    with pytest.raises(ValueError, match=f"{file.name}: expected a safetensors file, found: No"):
        load_optimizer(tmp_path, optimizer, names_of(quiet), 2)
    (tmp_path / "optimizer.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="no such file; resume needs"):
        load_optimizer(tmp_path, optimizer, names_of(quiet), 2)


def test_a_disk_that_refuses_the_optimiser_is_an_os_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", full)
    quiet, optimizer = stepped()
    with pytest.raises(OSError, match="cannot be written: .*No space left.*optimizer.saf") as end:
        save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    assert end.value.errno == errno.ENOSPC


def test_what_any_process_finds_damaged_is_taken_by_none(tmp_path, monkeypatch, capsys):
    for step in (1, 2, 3):
        folder = tmp_path / f"step_{step:06d}"
        folder.mkdir()
        for name in ("model", "optimizer"):
            (folder / f"{name}.safetensors").touch()
        for name in ("config.json", "trainer.json"):
            (folder / name).touch()
    (tmp_path / "step_000003" / "trainer.json").unlink()
    found = iter([True, False])  # the other process finds step 2 damaged, and step 1 whole
    monkeypatch.setattr(checkpoint, "anywhere", lambda mine: mine or next(found))
    assert checkpoint.newest_whole(tmp_path, True) == tmp_path / "step_000001"
    assert "step_000003: expected trainer.json, found none; taking" in capsys.readouterr().err
    # one that does not write lists nothing, says nothing, and takes what the first names
    names = iter([str(tmp_path / f"step_00000{step}") for step in (3, 2, 1)])
    monkeypatch.setattr(checkpoint, "from_first", lambda text: next(names))
    found = iter([True, False])
    assert checkpoint.newest_whole(Path("elsewhere"), False) == tmp_path / "step_000001"
    assert capsys.readouterr().err == ""
