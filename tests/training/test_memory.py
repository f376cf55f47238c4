"""memory: the formula is within a tenth of what a step's tensors were measured to take."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live import Live
from torch._subclasses.fake_tensor import FakeTensorMode

from qs.config import Config
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.model.products import by_blocks
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Placement, allocate, make_masters
from qs.training.memory import MIB, PartMemory, logit_bytes
from qs.training.optimizer import make_optimizer
from qs.training.plan import plan
from qs.training.step import sum_over_ranks, think, train_step

SMALL = ModelConfig(4096, 256, 4, 8, 4, 32, 512)
TINY = ModelConfig(480, 128, 2, 4, 4, 32, 256)
CPU = Placement(torch.device("cpu"), torch.float32, False, "structured")


@given(
    mebibytes=st.integers(1, 4000),
    rows=st.integers(1, 9),
    thoughts=st.integers(1, 20),
    samples=st.integers(2, 5),
    recompute=st.booleans(),
    compiled=st.booleans(),
    width=st.sampled_from([2, 4]),
)
def test_parts_take_no_more_than_the_bound(
    mebibytes, rows, thoughts, samples, recompute, compiled, width
):
    config = Config().changed(thoughts=thoughts, samples=samples, batch=rows, seq=64)
    memory = PartMemory(config, SMALL, width, recompute, compiled)
    part = memory.split(mebibytes, rows)
    assert part == (1, 1) or memory.kept(*part) <= mebibytes * MIB
    if part != (rows, 64):  # no smaller than it must be
        assert memory.kept(rows, 64) > mebibytes * MIB


def test_rows_that_no_smaller_part_divides_are_as_many_as_fit():
    memory = PartMemory(Config().changed(batch=7, seq=64), SMALL, width=4)
    bound = math.ceil(memory.kept(4, 64) / MIB)
    assert memory.kept(7, 64) > bound * MIB
    assert memory.split(bound, 7) == (4, 64)


def test_logits_are_as_many_as_a_thought_has_tokens_or_what_it_is_judged_on():
    def needed(n: int, m: int) -> int:
        config = Config().changed(thoughts=n, ahead=m, seq=64)
        return logit_bytes(config, TINY, CPU, rows=1, anchors=64)

    assert needed(2, 6) == needed(6, 2) > needed(2, 2)


def random_text(shape: ModelConfig, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(3, shape.vocab_size, (config.run.batch, config.run.seq))
    return tokens, torch.zeros_like(tokens)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (SMALL, {"seq": 64, "thoughts": 8, "batch": 1, "activations": 24}),
        (SMALL, {"seq": 48, "thoughts": 5, "batch": 2, "activations": 16, "recompute": True}),
        (TINY, {"seq": 64, "thoughts": 5, "batch": 4, "samples": 4, "activations": 16}),
    ],
)
def test_a_step_in_several_parts_takes_the_memory_that_was_foretold(shape, changes):
    config = Config().changed(device="cpu", **changes)
    with Live() as live:
        quiet = allocate(shape, config, CPU)
        with torch.no_grad():
            for parameter in quiet.parameters():
                parameter.normal_(0, 0.02)
        optimizer = make_optimizer(quiet, config.optim)
        for step in range(2):  # moments are there in the second one
            live.peak = 0
            train_step(quiet, optimizer, *random_text(shape, config), config, step)
    foretold = plan(config, shape, CPU, None).device.total
    assert foretold == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("shape", [SMALL, TINY])
def test_a_part_keeps_for_its_backward_pass_what_was_foretold(shape):
    config = Config().changed(device="cpu", seq=32, thoughts=6, batch=2, activations=0)
    quiet = allocate(shape, config, CPU)
    text, generator = random_text(shape, config), torch.Generator().manual_seed(0)
    with Live() as live, torch.no_grad():
        for parameter in quiet.parameters():
            parameter.normal_(0, 0.02)
        (part,) = think(quiet, *text, config, generator)
        with torch.enable_grad():
            before = live.now
            scored = part.scored(quiet, part.counts)
            kept = live.now - before
    del scored
    assert PartMemory(config, shape, 4).kept(2, 32) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("recompute", "where"), [(False, "device"), (True, "host"), (False, "halves")]
)
def test_a_7b_step_of_fake_tensors_has_the_dtypes_and_bytes_that_were_foretold(
    recompute, where, monkeypatch
):
    # how many rows have a gradient is not known without numbers: all
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda x: torch.arange(x.numel())[:, None])
    shape = ModelConfig(32000, 4096, 2, 32, 8, 128, 14336)  # two of 32 layers
    offload, moments = where == "host", "8bit" if where == "halves" else "float32"
    kept_where = {"recompute": recompute, "offload": offload, "moments": moments}
    config = Config().changed(thoughts=16, batch=1, activations=3000, **kept_where)
    placement = Placement(CPU.device, torch.bfloat16, False, "structured", True, where)
    foretold = plan(config, shape, placement, None)
    by_blocks(torch.float32)  # which is found out by numbers, once
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = Mistral(shape, torch.bfloat16, recompute)
        narrow = torch.bfloat16 if where == "halves" else torch.float32  # gradients
        model.narrow(narrow)
        quiet = QuietStar(model, config.thinking)
        quiet.masters = make_masters(quiet, placement)
        quiet.seen.update(("mixer", "reward"))  # there are no numbers that could be finite
        optimizer = make_optimizer(quiet, config.optim, offload, foretold.eight_bits)
        generator = torch.Generator().manual_seed(0)
        parts = think(quiet, *random_text(shape, config), config, generator)
        counts = sum_over_ranks([part.counts for part in parts])
        for part in parts[:2]:  # from the second one on there are gradients
            before, live.peak = live.now, 0
            step, means = part.scored(quiet, counts)
            kept = live.now - before
            quiet.loss(means).backward()
            del step, means
        peak = live.peak
        optimizer.step()
        gradients = [p.grad for p in quiet.parameters()]
        state = [x for values in optimizer.state.values() for x in values.values() if x.ndim]
        masters = list(quiet.masters.values())
        if where == "halves":
            masters = [halves.low for halves in masters]
    assert {p.dtype for p in quiet.model.layers.parameters() if p.ndim > 1} == {torch.bfloat16}
    wide = {torch.float32}
    assert {x.dtype for x in gradients} == wide | {narrow}
    assert {x.dtype for x in masters} == ({torch.int16} if where == "halves" else wide)
    assert {x.dtype for x in state} == wide | ({torch.uint8} if where == "halves" else set())
    assert sum(p.nbytes for p in quiet.parameters()) == foretold.device.weights
    assert sum(x.nbytes for x in gradients) == foretold.device.gradients
    on_its_way = 4 * max(x.nbytes for x in gradients) if offload else 0
    held = foretold.host if offload else foretold.device
    taken = sum(x.nbytes for x in (*state, *masters)) + on_its_way
    # vectors have float32 moments
    assert taken == pytest.approx(held.optimizer, rel=1e-3 if where == "halves" else 0)
    masters_and_passes = foretold.device._replace(optimizer=sum(x.nbytes for x in masters))
    assert peak == pytest.approx(masters_and_passes.total, rel=0.1)  # moments come later
    if not recompute:
        assert kept == pytest.approx(foretold.device.activations, rel=0.1)
