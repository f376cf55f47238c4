"""kernels: the CPU's own backward passes equal those of the forms written out, on drawn inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import normal, seeds
from hypothesis import given
from hypothesis import strategies as st

from qs.model import kernels
from qs.model.mistral import RMSNorm, rotary_angles, rotate


def equal(one, other, inputs):
    """Values and gradients of two functions of the same inputs."""
    results = []
    for function in (one, other):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        weights = normal(*out.shape, seed=7)
        results.append((out, *torch.autograd.grad((out * weights).sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(one(*inputs), results[0][0])


shapes = st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([2, 4, 6]))


@given(shape=shapes, seed=seeds, dense=st.booleans())
def test_normalisation_equals_root_mean_square_written_out(shape, seed, dense):
    x, weight = normal(*shape, seed=seed), normal(shape[-1], seed=seed + 1)
    if not dense:  # as views that are not contiguous are
        x = normal(*shape[:-1], 2, shape[-1], seed=seed)[..., 0, :]

    def written_out(x, weight):
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))

    equal(lambda x, weight: kernels.normalize(x, weight, 1e-5), written_out, [x, weight])


@given(shape=shapes, heads=st.integers(1, 3), seed=seeds)
def test_rotation_equals_pairs_turned_one_by_one(shape, heads, seed):
    B, S, d = shape
    positions = torch.randint(50, (B, S), generator=torch.Generator().manual_seed(seed))
    half = rotary_angles(positions, d, 100.0, torch.float64)[:, :, None]  # (B, S, 1, d / 2)
    angles = torch.cat([half, half], -1)

    def one_by_one(x):
        turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1).contiguous())
        turned = turned * torch.polar(torch.ones_like(half), half)
        return torch.cat([turned.real, turned.imag], -1)

    x = normal(B, S, heads, d, seed=seed)
    for serves in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "serves", lambda x, serves=serves: serves)
            equal(lambda x: rotate(x, angles.cos(), angles.sin()), one_by_one, [x])


@given(shape=shapes, seed=seeds)
def test_the_gate_equals_silu_times_input(shape, seed):
    inputs = [normal(*shape, seed=seed), normal(*shape, seed=seed + 1)]
    equal(kernels.gate, lambda gate, x: F.silu(gate) * x, inputs)


def test_they_serve_wide_eager_arithmetic_on_the_cpu_alone():
    assert kernels.serves(torch.zeros(1))
    assert kernels.serves(torch.zeros(1, dtype=torch.float64))
    assert not kernels.serves(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.serves(torch.zeros(1, device="meta"))
    norm, x = RMSNorm(4, 1e-5).bfloat16(), normal(2, 4, seed=0).bfloat16()
    wide = norm.float()(x.float())
    torch.testing.assert_close(norm.bfloat16()(x).float(), wide, rtol=2e-2, atol=2e-2)
