"""average: the reference is a slow copy, for the gradient a constant, and resumed bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import batch, log, make, module, run, same_bits, same_checkpoint, tensors

import train
from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.quietstar.losses import linear_nll
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import targets_of
from qs.training.average import Average
from qs.training.optimizer import make_optimizer
from qs.training.step import train_step

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


@pytest.mark.parametrize("micro_batch", [1, 2, 0])
def test_however_a_batch_is_split_rewards_are_over_the_average(micro_batch: int):
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


def test_a_checkpoint_without_its_average_is_refused(tmp_path):
    average = Average(module(THOUGHT), 0.9)
    with pytest.raises(ValueError, match=r"average.safetensors: no such file; --reference average"):
        average.load(tmp_path)
    average.weights = {"model.other": torch.zeros(1)}
    average.save(tmp_path)
    with pytest.raises(ValueError, match=r"missing .*, 1 unexpected \(model.other\)"):
        Average(module(THOUGHT), 0.9).load(tmp_path)
