"""bench: what it counts is exact, and a figure that got worse is an exit status of 1."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import ROOT
from torch.utils.flop_counter import FlopCounterMode

from qs.bench import __main__ as bench

FLAGS = ["--size", "tiny", "--seq", "16", "--thoughts", "2", "--device", "cpu", "--repeats", "1"]
COUNTS = ROOT / "docs" / "results" / "bench-tiny.json"


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(bench, "matrix_rate", lambda device: 1e11)


def measured(tmp_path, *flags):
    path = tmp_path / "figures.json"
    assert bench.main(["step", *FLAGS, "--json", str(path), *flags]) == 0
    return path


def test_a_step_is_told_phase_by_phase_with_operations_rate_and_memory(tmp_path, capsys):
    result = json.loads(measured(tmp_path).read_text())
    phases = ["step", "prefill", "sample", "score", "losses", "backward", "clip", "optimiser"]
    assert list(result["seconds"]) == phases
    assert result["seconds"]["step"] == pytest.approx(
        [sum(lap[0] for name, lap in result["seconds"].items() if name != "step")]
    )
    printed = capsys.readouterr().out
    for words in ("GFLOP by the formula", "of a matrix product's", "peak memory", "thought tokens"):
        assert words in printed


def test_the_formula_counts_what_a_plain_pass_computes():
    work = bench.Work(size="tiny", seq=12, thoughts=2, device="cpu")
    quiet, tokens = bench.build(work), torch.randint(3, 480, (1, 12))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        quiet.model.logits(quiet.base(tokens, torch.zeros_like(tokens))[0])
    c = work.shape
    attention = 4 * c.layers * c.heads * c.head_dim * 12 * 12
    head = 2 * c.vocab_size * c.dim * 12
    counted = counter.get_total_flops() - head
    assert bench.operations(work.config, work.shape)["prefill"] in (
        counted,
        counted + attention,
    )  # flash is not seen


@pytest.mark.parametrize(("name", "factor"), [("kept_bytes", 0.8), ("counted", 0.8)])
def test_more_operations_or_bytes_than_before_are_told_and_exit_with_1(
    tmp_path, capsys, name, factor
):
    path = measured(tmp_path)
    assert bench.main(["step", *FLAGS, "--compare", str(path), "--counts"]) == 0
    assert "nothing is worse" in capsys.readouterr().out
    before = json.loads(path.read_text())
    where = before if name in before else before["operations"]
    where[name] *= factor
    path.write_text(json.dumps(before))
    assert bench.main(["step", *FLAGS, "--compare", str(path), "--counts"]) == 1
    assert "+25.0%" in capsys.readouterr().out


def test_a_step_takes_no_more_operations_or_memory_than_was_committed(capsys):
    flags = [
        "--size",
        "tiny",
        "--seq",
        "32",
        "--thoughts",
        "3",
        "--device",
        "cpu",
        "--repeats",
        "1",
    ]
    assert bench.main(["step", *flags, "--compare", str(COUNTS), "--counts"]) == 0


def test_other_work_is_not_compared(tmp_path, capsys):
    path = measured(tmp_path)
    assert bench.main(["step", *FLAGS, "--samples", "3", "--compare", str(path)]) == 2
    assert "expected figures of the same work, found others" in capsys.readouterr().err


def test_exponents_are_fitted_and_branches_can_be_read_one_by_one(tmp_path, capsys):
    assert bench.main(["step", *FLAGS, "--sweep", "K"]) == 0
    assert "exponents: seconds" in capsys.readouterr().out
    measured(tmp_path, "--against", "naive")
    assert "times as long" in capsys.readouterr().out
    assert bench.main(["generate", *FLAGS]) == 0
    assert "output token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--sweep", "n"], "expected the mode step"),
        (["generate", "--compare", "FILE"], "expected the mode step"),
        (["step", "--against", "naive", "--batch", "2"], "--batch 1 and all anchors on a CPU"),
    ],
)
def test_what_cannot_be_compared_is_refused(capsys, arguments, message):
    assert bench.main([*arguments, *FLAGS]) == 2
    assert message in capsys.readouterr().err
