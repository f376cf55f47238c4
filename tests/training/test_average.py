"""average: the reference is a slow copy, for the gradient a constant, and resumed bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import batch, log, make, module, run, same_bits, same_checkpoint, tensors

import train
from qs.cli import Parser, parse
from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.quietstar.losses import linear_nll
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import targets_of
from qs.training import distributed
from qs.training.average import Average
from qs.training.distributed import Ranks
from qs.training.memory import PartMemory
from qs.training.optimizer import make_optimizer
from qs.training.step import train_step
from qs.training.trainer import Trainer

THOUGHT = ThoughtConfig(
    thoughts=2, ahead=2, samples=2, beta=30.0, reference="average", average_decay=0.75
)
CONFIG = Config(THOUGHT, OptimConfig(lr=0.01, warmup=0), RunConfig(batch=4, seq=7, seed=5))


def test_the_average_moves_by_its_decay_after_each_step():
    quiet = module(THOUGHT)
    average, optimizer = Average(quiet, 0.75), make_optimizer(quiet, CONFIG.optim)
    expected = {name: p.detach().clone() for name, p in quiet.named_parameters()}
    for step in range(3):
        train_step(quiet, optimizer, *batch(step), CONFIG, step, average=average)
        for name, p in quiet.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    assert average.weights.keys() == {name for name in expected if name.startswith("model.")}
    for name, value in average.weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_the_average_moves_in_stages_without_thoughts_too(tmp_path):
    tiny = make(tmp_path / "tiny")
    flags = tiny.flags(tmp_path, "--reference=average", "--average-decay=0.5")
    config = parse([*flags, "--curriculum=2-2,0,2-2"], Parser("train.py"))
    trainer = Trainer(config, tiny.weights, tmp_path / "run")
    trainer.begin()
    weights = dict(trainer.quiet.named_parameters())
    expected = {name: weights[name].detach().clone() for name in trainer.average.weights}
    for _ in range(config.run.steps):
        trainer.step()
        for name, value in expected.items():
            value.lerp_(weights[name].detach(), 0.5)
        same_bits(trainer.average.weights, expected)


def test_targets_are_judged_by_the_average_and_the_model_keeps_its_bits():
    quiet, other = module(THOUGHT, 1), module(THOUGHT, 2)
    average, before = Average(other, 0.9), {n: p.clone() for n, p in quiet.named_parameters()}
    text = batch(3)
    everywhere = torch.arange(7).expand(4, -1)
    targets = average.judge(quiet, *text, targets_of(*text, everywhere, 2))
    same_bits(dict(quiet.named_parameters()), before)
    outputs, _ = other.base(*text)
    nll = linear_nll(outputs, other.model.head, targets.next).where(targets.next_valid, 0.0)
    torch.testing.assert_close(targets.reference, nll.detach())
    assert not targets.reference.requires_grad


@pytest.mark.parametrize(
    ("micro_batch", "part"), [(1, (1, 7)), (2, (2, 7)), (0, (4, 7)), (0, (1, 3)), (2, (1, 7))]
)
def test_however_a_batch_is_split_rewards_are_over_the_average(micro_batch, part, monkeypatch):
    monkeypatch.setattr(PartMemory, "split", lambda *_: part)
    config = CONFIG.changed(micro_batch=micro_batch)
    quiet, average, text = module(THOUGHT, 1), Average(module(THOUGHT, 2), 0.9), batch(3)
    record = train_step(
        quiet, make_optimizer(quiet, CONFIG.optim), *text, config, 0, average=average
    )

    quiet, average = module(THOUGHT, 1), Average(module(THOUGHT, 2), 0.9)
    everywhere = torch.arange(7).expand(4, -1)
    targets = average.judge(quiet, *text, targets_of(*text, everywhere, 2))
    step = quiet(*text, generator=step_generator(5, 0), targets=targets)
    expected = step.reward[step.valid.all(-1)].mean().item()
    assert record["reward"] == pytest.approx(expected, rel=1e-9)


def test_a_step_that_is_not_finite_leaves_the_average_as_it_is():
    quiet, average = module(THOUGHT, 1), Average(module(THOUGHT, 2), 0.9)
    before = {name: x.clone() for name, x in average.weights.items()}
    quiet.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    optimizer = make_optimizer(quiet, CONFIG.optim)
    assert train_step(quiet, optimizer, *batch(3), CONFIG, 0, average=average)["skipped"]
    same_bits(average.weights, before)


def test_a_resumed_run_equals_an_uninterrupted_one_with_its_average(tmp_path):
    tiny = make(tmp_path / "tiny")
    flags = ("--reference=average", "--average-decay=0.9", "--baseline=others", "--save-every=3")
    whole = run(tmp_path / "whole", tiny.flags(tmp_path / "whole", *flags))
    half = run(tmp_path / "half", tiny.flags(tmp_path / "half", *flags))
    shutil.rmtree(half / "step_000006")
    assert train.main(["--resume", str(half)]) == 0
    same_checkpoint(whole / "step_000006", half / "step_000006")
    assert log(half) == log(whole)
    assert any(name.startswith("average") for name in tensors(half / "step_000006"))


@pytest.mark.parametrize(
    ("curriculum", "reference"), [("2-2,0", "own"), ("2-2,0", "average"), ("0", "own")]
)
def test_a_distilled_run_goes_on_with_the_teacher_that_it_had(curriculum, reference, tmp_path):
    tiny = make(tmp_path / "tiny")
    flags = [f"--curriculum={curriculum}", "--distil=0.5", "--save-every=1", "--keep=0"]
    flags += [f"--reference={reference}"]
    whole = run(tmp_path / "whole", tiny.flags(tmp_path / "whole", *flags))
    begin = 0 if curriculum == "0" else 3  # steps done
    assert ["distil" in line for line in log(whole)] == [step >= begin for step in range(6)]
    assert all(line["distil"] > 0 for line in log(whole)[begin:])
    first, last = (tensors(whole / f"step_{step:06d}") for step in (begin + 1, 6))
    held = {name for name in last if name.startswith("average")}
    assert {"average.safetensors/start", "average.safetensors/mixer.0.weight"} < held
    same_bits(*({name: each[name] for name in held} for each in (first, last)))
    for stop in {max(1, begin), begin + 1, 5}:
        half = shutil.copytree(whole, tmp_path / f"stopped-{stop}")
        for step in range(stop + 1, 7):
            shutil.rmtree(half / f"step_{step:06d}")
        (half / "results.json").unlink()
        assert train.main(["--resume", str(half)]) == 0
        same_checkpoint(whole / "step_000006", half / "step_000006")
        assert log(half) == log(whole)


def test_until_its_last_stage_a_distilled_run_is_one_that_is_not(tmp_path):
    tiny = make(tmp_path / "tiny")
    flags = ("--curriculum=2-2,0", "--save-every=3")
    shares = ("--distil=0.5", "--distil=0")
    one, other = (run(tmp_path / x, tiny.flags(tmp_path / x, *flags, x)) for x in shares)
    same_bits(*(tensors(each / "step_000003") for each in (one, other)))
    records = log(one), log(other)
    assert records[0][:3] == records[1][:3]
    assert records[0][3]["nll_base"] == records[1][3]["nll_base"]
    assert not any("distil" in line for line in records[1])
    assert not any("average" in name for name in tensors(other / "step_000006"))


@pytest.mark.parametrize(
    "flags",
    [["--reference=average"], ["--curriculum=2-2,0", "--distil=1"]],
    ids=["average", "distil"],
)
def test_several_processes_are_refused(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "start", lambda _: Ranks(0, 2))
    tiny = make(tmp_path / "tiny")
    assert train.main(tiny.flags(tmp_path / "out", *flags)) == 2
    assert "--reference average and --distil: expected one process" in capsys.readouterr().err


def test_a_checkpoint_without_its_average_is_refused(tmp_path):
    average = Average(module(THOUGHT), 0.9)
    with pytest.raises(ValueError, match=r"average.safetensors: no such file; --reference average"):
        average.load(tmp_path)
    average.weights = {"model.other": torch.zeros(1)}
    average.save(tmp_path)
    with pytest.raises(ValueError, match=r"missing .*, 1 unexpected \(model.other\)"):
        Average(module(THOUGHT), 0.9).load(tmp_path)
