"""bench: what it counts is exact, and a figure that got worse is an exit status of 1."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from tiny import ROOT
from torch.utils.flop_counter import FlopCounterMode

from qs.bench import __main__ as bench
from qs.bench.work import build
from qs.training.work import operations

FLAGS = ["--size", "tiny", "--seq", "16", "--thoughts", "2", "--device", "cpu", "--repeats", "1"]
COUNTS = ROOT / "docs" / "results" / "bench-tiny.json"


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    monkeypatch.setattr(bench, "matrix_rate", lambda device, dtype: 1e11)


def measured(tmp_path, *flags):
    path = tmp_path / "figures.json"
    assert bench.main(["step", *FLAGS, "--json", str(path), *flags]) == 0
    return path


def test_a_step_is_told_phase_by_phase_with_operations_rate_and_memory(tmp_path, capsys):
    stages = json.loads(measured(tmp_path).read_text())["stages"]
    assert list(stages) == ["prefill", "think", "step"]
    (total, *laps), phases = stages["step"]["seconds"].values(), list(stages["step"]["seconds"])
    assert phases[1:] == ["think", "score", "losses", "backward", "clip", "optimiser"]
    assert total == pytest.approx([sum(lap[0] for lap in laps)])
    printed = capsys.readouterr().out
    parts = json.loads(measured(tmp_path, "--seq", "48", "--activations", "1").read_text())
    assert parts["stages"]["step"]["facts"]["operations"] > 1.2 * sum(
        operations((work := bench.Work(**parts["work"])).config, work.shape).values()
    )
    for words in ("GFLOP by the formula", "of a matrix product's", "peak MiB", "thought tokens"):
        assert words in printed


def test_the_formula_counts_what_a_plain_pass_computes():
    work = bench.Work(size="tiny", seq=12, thoughts=2, device="cpu")
    quiet, tokens = build(work)[0], torch.randint(3, 480, (1, 12))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        quiet.model.logits(quiet.base(tokens, torch.zeros_like(tokens))[0])
    c = work.shape
    attention = 4 * c.layers * c.heads * c.head_dim * 12 * 12
    head = 2 * c.vocab_size * c.dim * 12
    counted = counter.get_total_flops() - head
    formula = operations(work.config, work.shape)["prefill"]
    assert formula in (counted, counted + attention)  # flash is not seen


@pytest.mark.parametrize("name", ["kept_bytes", "counted_operations"])
def test_more_operations_or_bytes_than_before_are_told_and_exit_with_1(tmp_path, capsys, name):
    path = measured(tmp_path)
    assert bench.main(["step", *FLAGS, "--compare", str(path), "--counts"]) == 0
    assert "nothing is worse" in capsys.readouterr().out
    before = json.loads(path.read_text())
    before["stages"]["step"]["facts"][name] *= 0.8
    path.write_text(json.dumps(before))
    assert bench.main(["step", *FLAGS, "--compare", str(path), "--counts"]) == 1
    assert "+25.0%" in capsys.readouterr().out


def test_a_step_takes_no_more_operations_or_memory_than_was_committed(capsys):
    flags = [*FLAGS, "--seq", "32", "--thoughts", "3"]
    assert bench.main(["step", *flags, "--compare", str(COUNTS), "--counts"]) == 0


def test_other_work_is_not_compared(tmp_path, capsys):
    path = measured(tmp_path)
    assert bench.main(["step", *FLAGS, "--samples", "3", "--compare", str(path)]) == 2
    assert "expected figures of the same work, found others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["work"], None),
        (["stages"], 5),
        (["stages", "step"], {}),
        (["stages", "step", "facts"], [1]),
        (["stages", "step", "facts", "kept_bytes"], "x"),
        (["stages", "step", "facts", "kept_bytes"], 0),
        (["stages", "step", "seconds", "total"], []),
    ],
)
def test_figures_that_are_damaged_are_refused_in_one_line(tmp_path, names, value):
    figures = json.loads(COUNTS.read_text())
    part = figures
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match="damaged.json: expected figures of a step that --json"):
        bench.compared(json.loads(COUNTS.read_text()), path, 0.1, counts=False)


def test_what_is_no_number_is_worse(tmp_path):
    before = json.loads(COUNTS.read_text())
    now = json.loads(COUNTS.read_text())
    before["stages"]["step"]["facts"]["kept_bytes"] = math.nan
    assert [x.partition(":")[0] for x in bench.worse(now, before, 0.1, True)] == [
        "bytes kept for backward"
    ]


@pytest.mark.parametrize("flag", ["--json", "--compare"])
def test_a_sweep_writes_and_compares_nothing(tmp_path, capsys, flag):
    assert bench.main(["step", *FLAGS, "--sweep", "K", flag, str(tmp_path / "x")]) == 2
    assert f"{flag} is of one step: leave out --sweep" in capsys.readouterr().err


def test_exponents_are_fitted_and_branches_can_be_read_one_by_one(tmp_path, capsys):
    assert bench.main(["step", *FLAGS, "--sweep", "K"]) == 0
    out, err = capsys.readouterr()
    assert "exponents: seconds" in out
    assert re.findall(r"K (\d+):", err) == ["2", "4", "8", "16"]
    measured(tmp_path, "--against", "naive")
    assert "times as long" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "stages", "fact"),
    [
        ("generate", ["rows 1", "rows 2"], "tokens per second"),
        ("evaluate", ["questions"], "seconds per question"),
        ("prepare", ["workers 1"], "bytes per second"),
    ],
)
def test_other_modes_are_told_with_rates(tmp_path, monkeypatch, capsys, mode, stages, fact):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    path = tmp_path / "figures.json"
    flags = ["--batch", "2", "--questions", "2", "--documents", "50", "--json", str(path)]
    assert bench.main([mode, *FLAGS, *flags]) == 0
    figures = json.loads(path.read_text())["stages"]
    assert list(figures) == stages
    assert all(figures[name]["peak_bytes"] > 2**20 for name in stages)
    assert f"{stages[-1]}: {fact}" in capsys.readouterr().out


def test_stages_that_are_done_are_kept_where_a_later_one_fails(tmp_path, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("qs.bench.step.make_optimizer", no_memory)
    path = tmp_path / "figures.json"
    assert bench.main(["step", *FLAGS, "--json", str(path)]) == 2
    assert list(json.loads(path.read_text())["stages"]) == ["prefill", "think"]


def test_repeats_end_when_their_seconds_are_over_but_not_before_one(tmp_path):
    path = measured(tmp_path, "--repeats", "100", "--seconds", "1e-9")
    stages = json.loads(path.read_text())["stages"]
    assert all(len(stage["seconds"]["total"]) == 1 for stage in stages.values())


def test_the_model_is_the_same_every_time_and_made_where_it_runs():
    one, other = (build(bench.Work(size="tiny", device="cpu"))[0] for _ in range(2))
    for (name, x), y in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        assert ("norm" in name) == bool((x == 1).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--sweep", "n"], "expected the mode step"),
        (["generate", "--compare", "FILE"], "expected the mode step"),
        (["step", "--against", "naive", "--batch", "2"], "--batch 1 and all anchors on a CPU"),
        (["step", "--compile", "--compare", "FILE"], "expected --no-compile"),
        (["evaluate", "--tokenizer", "nowhere"], "nowhere"),
        (["step", "--compare", "FILE", "--tolerance", "nan"], "expected 0 to 1000000000, got nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(capsys, arguments, message):
    assert bench.main([*arguments, *FLAGS]) == 2
    assert message in capsys.readouterr().err
