"""exact: the two halves give back every float32 number, and the first is as near as bfloat16 is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qs.model.exact import Exact, join, split

ALL = torch.arange(2**16, dtype=torch.int32)  # everything that 16 bits can be


def numbers(upper: int) -> torch.Tensor:
    """All 65,536 float32 numbers whose upper 16 bits are these."""
    return ((ALL - 2**15) + ((upper - 2**15) * 2**16 + 2**15)).view(torch.float32)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# zeros, subnormal, one, largest finite and its neighbours, infinities, not a number
@pytest.mark.parametrize("sign", [0, 0x8000])
@pytest.mark.parametrize("upper", [0, 1, 0x7F, 0x80, 0x3F7F, 0x3F80, 0x7F7F, 0x7F80, 0x7FFF])
def test_special_numbers_come_back_bit_for_bit(upper, sign):
    wide = numbers(upper | sign)
    assert same(join(*split(wide)), wide)


@given(upper=st.integers(0, 2**16 - 1))
def test_every_number_comes_back_and_its_first_half_is_the_nearest(upper):
    wide = numbers(upper)
    rounded, low = split(wide)
    assert (rounded.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert same(join(rounded, low), wide)
    torchs = wide.bfloat16()
    finite = wide.isfinite() & torchs.isfinite()
    exact, mine, theirs = (x[finite].double() for x in (wide, rounded, torchs))
    assert torch.equal((mine - exact).abs(), (theirs - exact).abs())
    assert (rounded.view(torch.int16) != torchs.view(torch.int16))[finite].sum() <= 1  # the tie


def test_a_number_that_is_bfloat16_already_lacks_nothing():
    wide = torch.randn(999, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    rounded, low = split(wide)
    assert torch.equal(rounded.float(), wide)
    assert not low.any()


def test_what_is_copied_into_halves_is_what_they_hold():
    halves = Exact(torch.zeros(3, 5).bfloat16(), torch.zeros(3, 5, dtype=torch.int16))
    wide = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).T
    halves.copy_(wide)
    assert torch.equal(halves.detach(), wide)
    assert (halves.shape, halves.numel(), halves.element_size()) == (wide.shape, 15, 4)
    assert halves.isfinite().all()
    halves.unflatten(1, (-1, 5)).copy_(2 * wide[:, None])
    assert torch.equal(halves.detach(), 2 * wide)
    halves.copy_(torch.full((3, 5), torch.inf))
    assert not halves.isfinite().any()
