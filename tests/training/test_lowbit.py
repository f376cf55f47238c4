"""lowbit: an update is float32 AdamW's, and what is kept of its moments is the nearest code."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, make, run, same_bits, same_checkpoint, tensors
from torch import nn

import train
from qs import files
from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.exact import Exact
from qs.quietstar.load import Placement, allocate
from qs.training import lowbit
from qs.training.lowbit import BLOCK, LowBitAdamW, code_values, dequantize, quantize
from qs.training.optimizer import exact_parameters, make_optimizer
from qs.training.step import train_step


def uneven(seed: int, *shape: int) -> torch.Tensor:
    """Numbers of either sign, from 1e-8 to about 1."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (-8 * torch.rand(shape, generator=generator))
    return sizes * torch.randn(shape, generator=generator)


def test_there_are_256_values_and_the_largest_of_a_block_is_one_of_them():
    for signed in (True, False):
        values = code_values(signed)
        assert values.shape == (256,)
        assert (values.diff() > 0).all()
        assert 0.0 in values
        assert values[-1] == 1
        assert (values[0] < 0) == signed
        parts = 64 if signed else 128  # of the decade below 1; 1 or 2 of the lowest
        ends = torch.tensor([values[values > 0][0], values[-2]])
        expected = torch.tensor([5.5e-7 if signed else 3.25e-7, 1 - 0.45 / parts])
        assert torch.allclose(ends, expected, rtol=1e-6, atol=0)


@given(seed=st.integers(0, 2**32), signed=st.booleans())
def test_every_number_takes_the_nearest_value(seed, signed):
    wide = uneven(seed, 2 * BLOCK)
    wide[BLOCK:] *= 1e-30  # a block has its own scale
    wide = wide if signed else wide.abs()
    codes, scale = quantize(wide, signed)
    assert torch.equal(scale, wide.view(-1, BLOCK).abs().amax(1))
    candidates = code_values(signed).double()[:, None, None] * scale.double()[:, None]
    nearest = (candidates - wide.double().view(-1, BLOCK)).abs().amin(0)
    found = (dequantize(codes, scale, signed).double() - wide.double()).abs().view(-1, BLOCK)
    assert (
        torch.allclose(found, nearest, rtol=1e-3, atol=0)
        or (found - nearest <= 1e-6 * scale[:, None]).all()
    )


@pytest.mark.parametrize("signed", [True, False])
def test_of_two_values_as_near_the_upper_one_is_taken(signed):
    values = code_values(signed)
    middle = (values[1:] + values[:-1]) / 2
    blocks = torch.ones(len(middle), BLOCK)  # of scale 1
    blocks[:, 0] = middle
    codes, _ = quantize(blocks.view(-1), signed)
    assert codes.view(-1, BLOCK)[:, 0].tolist() == list(range(1, 256))


def test_a_block_of_zeros_stays_one():
    codes, scale = quantize(torch.zeros(BLOCK), True)
    assert not dequantize(codes, scale, True).any()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"))


def stepped(shape, halves, steps=3, dtype=torch.bfloat16):
    """Parameter, optimiser and exact values after steps of given gradients, beside AdamW's own."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = nn.Parameter(values.clone())
    own = nn.Parameter(values.to(torch.bfloat16) if halves else values.clone())
    exact = Exact(own.data, torch.empty(shape, dtype=torch.int16))
    if halves:
        exact.copy_(values)
    group = {"lr": 1e-3, "weight_decay": 0.1}
    optimizer = LowBitAdamW([{"params": [own], **group}], {own: exact} if halves else {})
    reference = torch.optim.AdamW([plain], fused=True, **group)
    sizes = uneven(99, *shape)
    for step in range(steps):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        gradient = (sizes * (1 + noise)).to(dtype)
        plain.grad, own.grad = gradient.float(), gradient
        optimizer.step()
        reference.step()
    return optimizer, (exact.detach() if halves else own.detach()), plain.detach()


@pytest.mark.parametrize("halves", [False, True])
def test_with_float32_moments_updates_are_adamws_bit_for_bit(halves):
    dtype = torch.bfloat16 if halves else torch.float32
    for shape in ((5, 7), (512,)):  # no whole blocks; a vector
        optimizer, found, expected = stepped(shape, halves, dtype=dtype)
        assert {x.dtype for x in next(iter(optimizer.state.values())).values()} == {torch.float32}
        assert torch.equal(found, expected)


@pytest.mark.parametrize("halves", [False, True])
def test_the_first_update_is_adamws_bit_for_bit(halves):
    dtype = torch.bfloat16 if halves else torch.float32
    _, found, expected = stepped((8, 64), halves, 1, dtype)
    assert torch.equal(found, expected)


def test_updates_go_adamws_way_although_gradients_in_a_block_differ_by_eight_decades():
    start = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    optimizer, found, expected = stepped((16, 64), True, 40)
    (state,) = optimizer.state.values()
    assert {n: x.dtype for n, x in state.items() if "scale" not in n} == {
        "step": torch.float32,
        "exp_avg": torch.uint8,
        "exp_avg_sq": torch.uint8,
    }
    moved, off = (x.flatten() for x in (expected - start, found - expected))
    assert off.norm() < 0.5 * moved.norm()
    assert off.abs().max() < 3 * moved.abs().max()  # none divided by a moment that became 0


def test_a_number_whose_gradients_are_next_to_nothing_in_its_block_moves_no_further_than_others():
    parameter = nn.Parameter(torch.zeros(2, BLOCK))
    optimizer = LowBitAdamW([{"params": [parameter], "lr": 1e-3, "weight_decay": 0.0}], {})
    for step in range(20):
        gradient = torch.full((2, BLOCK), (-1.0) ** step)
        gradient[:, 0] = 1.5e-7  # of the largest root of a second moment: nearer to 0 than to any
        parameter.grad = gradient
        optimizer.step()
    assert (parameter[:, 0] < 0).all()
    assert parameter.abs().max() <= 20 * 1e-3


def test_a_tensor_that_is_updated_in_parts_is_as_if_at_once(monkeypatch):
    whole = stepped((12, 64), True)
    monkeypatch.setattr(lowbit, "AT_ONCE", 2 * BLOCK)
    parts = stepped((12, 64), True)
    assert torch.equal(whole[1], parts[1])
    (one,), (other,) = whole[0].state.values(), parts[0].state.values()
    same_bits(one, other)


SHAPE = ModelConfig(vocab_size=32, dim=16, layers=1, heads=2, kv_heads=2, head_dim=8, hidden_dim=32)


def test_a_step_leaves_weights_that_are_the_upper_halves_and_gradients_in_bfloat16(monkeypatch):
    config = Config(
        ThoughtConfig(thoughts=2, ahead=2),
        OptimConfig(lr=1e-3, warmup=0),
        RunConfig(seq=7, device="cpu"),
    )
    placement = Placement(torch.device("cpu"), torch.bfloat16, False, "structured", True, "halves")
    quiet = allocate(SHAPE, config, placement)
    with torch.no_grad():
        for name, exact in exact_parameters(quiet).items():
            exact.copy_(uneven(len(name), *exact.shape))
    before = {n: x.detach().clone() for n, x in exact_parameters(quiet).items()}
    optimizer, dtypes = make_optimizer(quiet, config.optim, eight_bits=True), {}
    parameters = dict(quiet.named_parameters())
    step = optimizer.step

    def watched():
        dtypes.update({n: p.grad.dtype for n, p in parameters.items() if p.grad is not None})
        step()

    monkeypatch.setattr(optimizer, "step", watched)
    train_step(quiet, optimizer, *batch(0), config, 0)
    narrow = {n for n, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert narrow == quiet.masters.keys()
    assert narrow == {n for n in dtypes if ".layers." in n and "norm" not in n}
    for name, exact in exact_parameters(quiet).items():
        assert not torch.equal(exact.detach(), before[name]), name
        if name in narrow:
            nearest = exact.detach().to(torch.bfloat16)
            assert (nearest != parameters[name]).float().mean() < 0.01  # ties


def test_a_resumed_run_goes_on_bit_for_bit_with_the_moments_it_began_with(tiny, tmp_path):
    flags = ["--dtype=bfloat16", "--moments=8bit", "--eval-rows=0", "--save-every=3"]
    whole = run(tmp_path / "out", tiny.flags(tmp_path / "out", *flags))
    copy = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(copy / "step_000006")
    assert train.main(["--resume", str(copy)]) == 0
    same_checkpoint(copy / "step_000006", whole / "step_000006")
    stored = tensors(copy / "step_000006")
    assert {x.dtype for x in stored.values()} == {torch.float32, torch.uint8}


def test_the_moments_that_were_chosen_are_those_of_the_run(tiny, tmp_path):
    found = run(tmp_path, tiny.flags(tmp_path, "--steps=1", "--eval-rows=0"))
    assert files.read_config(found).run.moments == "float32"
