"""golden: who sees whom, where slots stand and which tokens are drawn equal the official code's."""

from __future__ import annotations

import pytest
import torch
from recorded import CASES, Recorded, close, recorded
from torch import Tensor

from qs.quietstar import masks
from qs.quietstar.masks import Layout, Slots, dense_mask, every_position
from qs.quietstar.sampler import prefill, sample


@pytest.fixture(params=CASES)
def case(request) -> Recorded:
    return recorded(request.param)


def slots_of(case: Recorded, length: int) -> Slots:
    """(B, S) all slots of every row: every position thinks."""
    return Layout(case.documents, every_position(case.tokens), case.K, length).packed


def pairs(case: Recorded) -> tuple[Slots, Slots]:
    """All slots as queries (B, S, 1) and as keys (B, 1, S)."""
    slots = slots_of(case, case.n + case.m + 1)
    return slots.map(lambda x: x[:, :, None]), slots.map(lambda x: x[:, None, :])


def test_positions_agree(case: Recorded):
    slots = slots_of(case, case.n + case.m + 1)
    official = case.values["position_ids_steps"]  # (steps, L)
    assert len(official) == slots.depth.max() + 1
    torch.testing.assert_close(slots.position, official[slots.depth, slots.anchor], rtol=0, atol=0)


def test_we_see_what_the_official_code_sees_up_to_the_window_by_rotary_distance(case: Recorded):
    """Officially the window is measured from the anchor, for text only, and does not move along.

    So text agrees under any window, and branches wherever the window reaches back to the text's
    first token: there, and nowhere else, nothing is cut.
    """
    query, key = pairs(case)
    official = case.official_sees(query, key)
    ours = masks.sees(query, key, case.window)
    real = (query.document >= 0).expand_as(ours)
    near = query.position - key.position < case.window
    assert torch.equal(ours[real], (official & near)[real])
    text = real & (query.depth == 0)
    assert torch.equal(ours[text], official[text])
    early = real & (query.position < case.window)
    assert torch.equal(ours[early], official[early])
    slots = slots_of(case, case.n + case.m + 1)
    assert torch.equal(ours, dense_mask(slots, slots, case.window))


def test_the_window_is_all_that_we_see_less(case: Recorded):
    query, key = pairs(case)
    real = (query.document >= 0).expand(-1, -1, key.depth.shape[2])
    official = case.official_sees(query, key)
    ours = masks.sees(query, key, case.window)
    unseen = (official & ~ours & real).any()
    assert unseen == (case.name == "qs3_window")
    assert torch.equal(
        masks.sees(query, key)[real & (query.depth > 0) & (key.depth > 0)],
        official[real & (query.depth > 0) & (key.depth > 0)],
    )


def test_padding_sees_the_text_before_it_there_and_only_padding_here():
    case = recorded("qs5_pad")
    query, key = pairs(case)
    padding = (query.document < 0).expand(-1, -1, key.depth.shape[2])
    text = (key.depth == 0) & (key.document >= 0) & (key.anchor <= query.anchor)
    assert torch.equal(case.official_sees(query, key)[padding], text.expand_as(padding)[padding])
    ours = masks.sees(query, key, case.window)
    assert not (ours & padding & (key.document >= 0)).any()
    assert not (ours & ~padding & (key.document < 0)).any()


def test_outputs_agree_under_our_own_window_wherever_it_cuts_nothing():
    case = recorded("qs3_window")
    anchors = every_position(case.tokens)
    base, branch = case.quiet().score(*case.text, anchors, case.thoughts)
    close(base, case.values["hidden_base"][:: case.K])
    close(case.step.nll_base[:, :-1], case.values["nll_base"][:: case.K])
    position = anchors[:, :, None, None] + torch.arange(1, branch.shape[3] + 1)
    early = (position < case.window).expand(branch.shape[:4])
    assert early.sum() == case.K * sum(range(case.window))
    close(branch[early], case.steps(case.values["hidden_steps"][1:])[early])
    later = case.steps(case.values["hidden_steps"][1:])[~early]
    assert ((branch[~early] - later).abs().amax(-1) > 1e-3).double().mean() > 0.9


# What is drawn

EDGE = 2e-6  # how far inside or outside: the recording is float32


def edges(case: Recorded) -> tuple[Tensor, Tensor]:
    """(B, L, K, n) the recorded tokens' intervals of the cumulative distribution."""
    p = case.steps(case.values["rm_logits_sampling"]).softmax(-1)  # (B, L, K, n, V)
    high = p.cumsum(-1).gather(-1, case.thoughts[..., None])
    low = high - p.gather(-1, case.thoughts[..., None])
    assert (high - low > 2 * EDGE).all()
    return low.squeeze(-1), high.squeeze(-1)


def draw(case: Recorded, uniforms: Tensor) -> Tensor:
    """(B, L, K, n) thoughts of every position in parallel."""
    quiet = case.quiet()
    layout = Layout(case.documents, every_position(case.tokens), case.K, case.n)
    _, cache = prefill(quiet.model, *case.text)
    start, never = quiet.vectors[0], quiet.model.config.forbidden
    temperature = case.config.sample_temperature
    return sample(quiet.model, start, layout, cache, uniforms, temperature, never)


def test_numbers_inside_both_edges_redraw_every_thought_and_outside_none(case, monkeypatch):
    if case.name == "qs3_window":
        monkeypatch.setattr(masks, "sees", case.official_sees)
    low, high = edges(case)
    for inside in (low + EDGE, high - EDGE):
        assert torch.equal(draw(case, inside)[case.real], case.thoughts[case.real])
    middle = (low + high) / 2
    for i in range(case.n):
        before, token = case.thoughts[..., :i][case.real], case.thoughts[..., i]
        for outside, sign in ((low[..., i] - EDGE, -1), (high[..., i] + EDGE, 1)):
            possible = case.real[:, :, None] & (outside >= 0) & (outside < 1)
            numbers = middle.clone()
            numbers[..., i] = outside.clamp(0, 1 - EDGE)
            drawn = draw(case, numbers)
            assert torch.equal(drawn[..., :i][case.real], before)
            assert (((drawn[..., i] - token) * sign)[possible] > 0).all()
            assert possible[case.real].double().mean() > 0.9


def test_our_own_window_redraws_every_token_that_it_cuts_nothing_from():
    case = recorded("qs3_window")
    position = torch.arange(case.L)[:, None] + torch.arange(1, case.n + 1)  # of what draws
    early = (position < case.window)[None, :, None].expand_as(case.thoughts)
    low, high = edges(case)
    for inside in (low + EDGE, high - EDGE):
        assert torch.equal(draw(case, inside)[early], case.thoughts[early])
