"""scalars: TensorBoard reads what the log says, of each step once, also after a resume."""

import shutil
import sys

import pytest
from tiny import make, only, run

import train
from qs import files
from qs.training.scalars import find_writer


def read_back(folder):
    """Pairs of step and value of every scalar by name."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


def logged(folder):
    """The same of the log, in TensorBoard's precision."""
    columns = {}
    for record in files.read_log(folder):
        step = record.pop("step")
        for name, value in record.items():
            columns.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return columns


def test_tensorboard_reads_what_the_log_says_also_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard")
    made, out = make(tmp_path / "tiny"), tmp_path / "out"
    flags = ["--tensorboard", "--save-every=2", "--keep=0", "--eval-rows=0"]
    found = run(out, made.flags(out, *flags))
    assert read_back(found) == logged(found)
    for step in (4, 6):
        shutil.rmtree(found / f"step_{step:06d}")  # as if killed after the log of step 6
    assert train.main(["--resume", str(found)]) == 0
    assert read_back(found) == logged(found)
    assert [step for step, _ in read_back(found)["loss"]] == [1, 2, 3, 4, 5, 6]
    assert len(list((found / "tensorboard").iterdir())) == 2


def test_scalars_are_flushed_with_every_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    made, out, seen = make(tmp_path / "tiny"), tmp_path / "out", []
    writer = find_writer()
    original = writer.flush

    def flush(self):
        original(self)
        seen.append(read_back(only(out))["loss"][-1][0])

    monkeypatch.setattr(writer, "flush", flush)
    run(out, made.flags(out, "--tensorboard", "--save-every=2", "--eval-rows=0"))
    assert seen == [2, 4, 6]


def test_a_run_without_the_package_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    made, out = make(tmp_path / "tiny"), tmp_path / "out"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train.main(made.flags(out, "--tensorboard")) == 2
    assert "run pip install -e '.[tensorboard]'" in capsys.readouterr().err
    assert not out.exists()
