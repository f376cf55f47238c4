"""products: blocks and halves equal the plain product, in value and gradient; blocks are exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import normal, seeds
from hypothesis import given
from hypothesis import strategies as st

from qs.model import products


@given(
    rows=st.sampled_from([(0,), (3,), (5, 2), (2, 7), (23,), (64,)]),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    biased=st.booleans(),
    dense=st.booleans(),
    trained=st.sampled_from(["both", "input", "weight"]),
    seed=seeds,
)
def test_products_in_blocks_of_rows_equal_the_plain_product(
    rows, sizes, biased, dense, trained, seed
):
    x, weight = normal(*rows, sizes[0], seed=seed), normal(*sizes[::-1], seed=seed + 1)
    if not dense:
        x = normal(*rows, 2, sizes[0], seed=seed)[..., 1, :]
    bias = normal(sizes[1], seed=seed + 2) if biased else None
    out = []
    for function in (products.linear, F.linear):
        leaves = [x.clone(), weight.clone()]
        if not dense:
            leaves[0] = torch.stack([x, x], -2)[..., 1, :]
        asked = {"both": leaves, "input": leaves[:1], "weight": leaves[1:]}[trained]
        for leaf in asked:
            leaf.requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "BLOCKS", (8, 2))
            patch.setattr(products, "by_blocks", lambda dtype: True)
            y = function(*leaves, bias)
            weights = normal(*y.shape, seed=seed + 3)
            out.append([y, *torch.autograd.grad((y * weights).sum(), asked)])
            with torch.no_grad():
                assert torch.equal(function(*leaves, bias), y)
    for found, expected in zip(*out, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_blocks_have_the_error_of_float32_and_leave_the_precision_as_it_was():
    """However this processor computes them: with units for bfloat16 there are no blocks."""
    x, weight = normal(700, 96, seed=0), normal(48, 96, seed=1)
    exact = x.float().double() @ weight.float().double().T
    bound = 96 * 2**-24 * (x.abs() @ weight.abs().T)
    with torch.no_grad():
        assert ((products.linear(x.float(), weight.float()) - exact).abs() <= bound).all()
    setting, before = torch.backends.mkldnn.matmul, "none"
    assert setting.fp32_precision == before  # not that of every kind of device
    with products.onednn():
        assert setting.fp32_precision == "bf16"
    assert setting.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_library_that_computes_in_bfloat16_is_not_asked(monkeypatch):
    products.by_blocks.cache_clear()
    plain = torch.Tensor.__matmul__

    def narrow(x, y):
        if torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            x, y = x.bfloat16(), y.bfloat16()
        return plain(x, y).float() if x.dtype == torch.bfloat16 else plain(x, y)

    monkeypatch.setattr(torch.Tensor, "__matmul__", narrow)
    assert not products.by_blocks(torch.float32)
    products.by_blocks.cache_clear()


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_a_product_by_halves_has_nearly_the_error_of_float32(shape):
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn((*shape, 64), generator=numbers)
    weight = torch.randn(7, 64, generator=numbers)
    exact = x.double() @ weight.double().T
    found = products.by_halves(x, weight)
    assert found.dtype == torch.float32
    assert found.shape == (*shape, 7)
    bound = 2**-14 * (x.abs().double() @ weight.abs().double().T)
    assert ((found - exact).abs() <= bound).all()
    if x.numel():
        assert (found - exact).norm() < 2**-15 * exact.norm()
        narrow = x.bfloat16().float() @ weight.bfloat16().float().T
        assert (narrow - exact).norm() > 2**-10 * exact.norm()
