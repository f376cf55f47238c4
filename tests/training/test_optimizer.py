"""optimizer: wherever float32 masters and moments live, updates are those of plain AdamW."""

import pytest
import torch
from tiny import batch, same_bits

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.training.checkpoint import load_optimizer, optimizer_tensors, save_optimizer
from qs.training.optimizer import exact_parameters, make_optimizer
from qs.training.step import train_step

CONFIG = Config(
    ThoughtConfig(thoughts=2, ahead=2, beta=30.0),
    OptimConfig(lr=1e-3, mixer_lr=1e-3, thought_lr=1e-3, weight_decay=0.1, warmup=0),
    RunConfig(seq=7, micro_batch=2),
)


def build(dtype=torch.float32, narrow=False, offload=False, recompute=False):
    """A small module whose parameters are float32 numbers that bfloat16 does not have."""
    shape = ModelConfig(
        vocab_size=11, dim=8, layers=2, heads=2, kv_heads=1, head_dim=4, hidden_dim=12
    )
    quiet = QuietStar(Mistral(shape, dtype, recompute), CONFIG.thought)
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in quiet.parameters():
            parameter.normal_(0, 0.4, generator=numbers)
    exact = {n: p.detach().clone() for n, p in quiet.named_parameters()}
    if narrow:
        quiet.model.narrow()
    own = dict(quiet.named_parameters())
    quiet.masters = {n: x for n, x in exact.items() if offload or own[n].dtype != x.dtype}
    return quiet, make_optimizer(quiet, CONFIG.optim, offload)


def trained(quiet, optimizer, steps=range(4), objective="quiet"):
    """Records and the exact parameters and moments after some steps, term norms at every other."""
    config = CONFIG.changed(objective=objective)
    records = [
        train_step(quiet, optimizer, *batch(step), config, step, bool(step % 2)) for step in steps
    ]
    exact = exact_parameters(quiet)
    names = {tensor: name for name, tensor in exact.items()}
    state = optimizer_tensors(optimizer, names)
    return records, {n: x.detach() for n, x in exact.items()} | state


def equal(one, other):
    assert one[0] == other[0]
    same_bits(one[1], other[1])


@pytest.mark.parametrize("objective", ["quiet", "plain"])
@pytest.mark.parametrize("recompute", [False, True])
def test_masters_of_narrow_weights_train_what_weights_cast_on_use_do(recompute, objective):
    cast = build(torch.bfloat16, recompute=recompute)
    expected = trained(*cast, objective=objective)
    for offload in (False, True):
        quiet, optimizer = build(torch.bfloat16, True, offload, recompute)
        equal(trained(quiet, optimizer, objective=objective), expected)
        dtypes = {n: p.dtype for n, p in quiet.named_parameters()}
        matrices = {n for n, p in quiet.named_parameters() if ".layers." in n and p.ndim > 1}
        assert {n for n, dtype in dtypes.items() if dtype == torch.bfloat16} == matrices
        for name, master in quiet.masters.items():
            parameter = dict(quiet.named_parameters())[name]
            assert torch.equal(parameter, master.to(parameter.dtype))


def test_a_float32_model_whose_optimiser_is_in_host_memory_trains_as_without():
    equal(trained(*build(offload=True)), trained(*build()))


@pytest.mark.parametrize("offload", [False, True])
def test_a_resumed_run_with_masters_goes_on_bit_for_bit(offload, tmp_path):
    quiet, optimizer = build(torch.bfloat16, True, offload)
    whole = trained(quiet, optimizer)
    first, begun = build(torch.bfloat16, True, offload)
    trained(first, begun, range(2))
    exact = exact_parameters(first)
    save_optimizer(tmp_path, optimizer_tensors(begun, {x: n for n, x in exact.items()}))

    other, again = build(torch.bfloat16, True, offload)
    with torch.no_grad():
        for name, tensor in exact_parameters(other).items():
            tensor.copy_(exact[name])
            dict(other.named_parameters())[name].copy_(exact[name])
    load_optimizer(tmp_path, again, {x: n for n, x in exact_parameters(other).items()}, 2)
    same_bits(trained(other, again, range(2, 4))[1], whole[1])


def test_gradients_of_narrow_weights_add_up_in_float32():
    quiet, _ = build(torch.bfloat16, True)
    weight = quiet.model.layers[0].attention.wq.weight
    for scale in (1.0, 1e-3):  # the second is below the rounding of the first
        (weight.sum() * scale).backward()
    assert weight.grad.dtype == torch.float32
    assert torch.allclose(weight.grad, torch.full_like(weight.grad, 1.001), atol=1e-5)
