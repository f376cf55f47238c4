"""bench.plan: a run is foretold without its weights, its data or its machine."""

from __future__ import annotations

import re

import pytest
from tiny import make, train

from qs.bench import plan


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(plan, "matrix_rate", lambda device, dtype: 1e11)


def told(capsys, *flags: str) -> str:
    assert train.main([*flags]) == 0
    return capsys.readouterr().out


def test_the_main_command_is_foretold_on_a_machine_with_nothing_on_it(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = told(capsys, "--data", "owm", "--thoughts", "16", "--plan", "80GB,128GB")
    for words in (
        "14.2",
        "27.2",
        "83.4",
        "chosen: --offload --no-recompute --moments float32",
        "fits",
        "about 11 s",
    ):
        assert words in said
    assert "does not fit" not in said
    said = told(capsys, "--data", "owm", "--thoughts", "16", "--plan", "80GB,32GB")
    for words in ("14.2", "26.8", "chosen: --no-offload --no-recompute --moments 8bit", "fits"):
        assert words in said
    assert "does not fit" not in said
    said = told(capsys, "--data", "owm", "--plan", "--device", "cpu")
    assert "use a machine with more memory, or a GPU" in said
    assert re.search(r"about \d+,\d{3} s a step", said)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_with_what_to_do(capsys):
    said = told(capsys, "--data=owm", "--weights=mistral-7b", "--plan=40GB,64GB")
    assert "does not fit: this takes" in said
    assert "use a larger GPU, or more of them" in said
    assert "host memory, 59.6 are available" in said


def test_a_checkpoint_and_a_run_that_would_be_resumed_are_foretold(capsys, tmp_path):
    tiny, out = make(tmp_path / "tiny"), tmp_path / "out"
    said = told(capsys, *tiny.flags(out), "--plan")
    assert str(tiny.weights) in said
    assert "fits" in said
    assert not out.exists()
    assert train.main([*tiny.flags(out), "--steps=1", "--eval-rows=0"]) == 0
    (run,) = out.iterdir()
    assert "fits" in told(capsys, "--resume", str(run), "--plan", "24GiB")


@pytest.mark.parametrize("sizes", ["80", "80GB;128GB", "GB", "80GB,"])
def test_sizes_that_cannot_be_read_are_refused(capsys, sizes):
    assert train.main(["--plan", sizes]) == 2
    assert "expected sizes of device and host memory such as 80GB,128GB" in capsys.readouterr().err
