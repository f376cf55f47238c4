"""tokens: every token counts once, and is scored with and without a thought of its own."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, make_world, module

from qs.config import PADDING, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.tokens import TextRows, measure_tokens, nll_score, windows
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED
from qs.quietstar.sampler import step_generator

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=6)
# whatever a run trains with, text is scored with one thought before every token
TRAINED = [
    ThoughtConfig(thoughts=2, ahead=3, samples=3),
    ThoughtConfig(thoughts=3, end="drawn", thought_cost=0.1),
    ThoughtConfig(thoughts=1, anchors="random", anchor_share=0.3, baseline="none"),
    ThoughtConfig(thoughts=0, beta=0.0, ahead=2, mix_weight="sigmoid", mix_space="probability"),
]


def score(quiet, text, **settings):
    """The score of (tokens, documents)."""
    run = RunConfig(**settings)
    table = measure_tokens(quiet, TextRows(*text), run)
    return nll_score(table.row_sums(table.scored), run.thinks)


def naive(quiet, tokens, documents, numbers):
    """(NLL without, NLL with, weight, row) of every token, each thought run alone."""
    one = dict(ahead=1, samples=1, beta=0.0, baseline="none", anchors="all", anchor_share=1.0)
    alone = QuietStar(quiet.model, dataclasses.replace(quiet.config, **one)).double()
    alone.load_state_dict(quiet.state_dict())
    found = []
    _, thoughts = alone.think(tokens, documents, generator=numbers)
    for b in range(len(tokens)):
        for t in range(tokens.shape[1] - 1):
            if documents[b, t] != documents[b, t + 1] or documents[b, t] < 0:
                continue
            own = torch.nonzero(documents[b] == documents[b, t]).flatten()
            text = tokens[b, own[own <= t + 1]][None]  # its document, up to the token
            at = torch.tensor([[text.shape[1] - 2]])
            step = alone(text, anchors=at, thoughts=thoughts[b : b + 1, t : t + 1])
            base, mix = step.nll_base[0, -2], step.nll_mix[0, 0, 0, 0]
            found.append((base.item(), mix.item(), step.weight[0, 0, 0, 0].item(), b))
    return np.array(found)


@few
@given(seeds, st.sampled_from(TRAINED), st.integers(1, 3))
def test_text_is_scored_token_by_token_with_the_thought_of_each(seed, config, size):
    quiet, text = module(config, seed), batch(seed, rows=3)
    found = score(quiet, text, seed=seed, batch=size)
    with torch.no_grad():
        base, mix, weight, row = naive(quiet, *text, step_generator(seed, 0)).T
    assert found.tokens == len(base)
    assert found.nll_base == pytest.approx(base.mean(), rel=1e-9)
    assert found.nll_mix == pytest.approx(mix.mean(), rel=1e-9)
    assert found.gain == pytest.approx((base - mix).mean(), rel=1e-6, abs=1e-12)
    assert found.weight == pytest.approx(weight.mean(), rel=1e-9)
    gains = [(base - mix)[row == i].sum() for i in range(3)]
    counts = [(row == i).sum() for i in range(3)]
    expected = ratio_estimate(np.array(gains), np.array(counts, float)).interval
    assert found.gain_interval == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert quiet.config == config  # scoring leaves the settings of training alone


def test_padding_and_how_rows_are_batched_change_nothing():
    quiet = module(TRAINED[0])
    tokens, documents = batch(1)
    together = score(quiet, (tokens, documents), seed=3, batch=4)
    apart = score(quiet, (tokens, documents), seed=3, batch=1)
    in_parts = score(quiet, (tokens, documents), seed=3, batch=4, micro_batch=2)
    other = tokens.where(documents >= 0, 7)  # what stands under padding
    padded = score(quiet, (other, documents), seed=3, batch=4)
    for one in (apart, in_parts, padded):
        assert one.tokens == together.tokens
        for name in ("nll_base", "nll_mix", "gain", "gain_interval", "weight"):
            assert getattr(one, name) == pytest.approx(getattr(together, name), rel=1e-9), name


def test_scoring_without_thinking_gives_the_same_nll_and_nothing_else():
    quiet = module(TRAINED[0])
    both = score(quiet, batch(1))
    plain = score(quiet, batch(1), objective="plain")
    assert plain.tokens == both.tokens
    assert plain.nll_base == pytest.approx(both.nll_base, rel=1e-12)
    assert {plain.nll_mix, plain.gain, plain.gain_interval, plain.weight} == {None}


@pytest.mark.parametrize("objective", ["plain", "quiet"])
def test_text_without_a_token_to_score_is_refused(objective):
    tokens = torch.zeros((2, 3), dtype=torch.int64)
    lonely = torch.tensor([[0, 1, 2], [-1, -1, -1]])
    with pytest.raises(ValueError, match="no token to score"):
        score(module(TRAINED[0]), (tokens, lonely), objective=objective)


@few
@given(seeds)
def test_a_table_holds_each_token_with_what_was_thought_before_it(seed):
    quiet, (tokens, documents) = module(TRAINED[0], seed), batch(seed, rows=3)
    table = measure_tokens(
        quiet, TextRows(tokens, documents), RunConfig(batch=2, seed=seed), entropies=True
    )
    assert torch.equal(table.tokens, tokens)
    assert torch.equal(table.documents, documents)
    same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    assert torch.equal(table.scored[:, :-1], same)
    assert not table.scored[:, -1].any()
    with torch.no_grad():
        expected = naive(quiet, tokens, documents, step_generator(seed, 0))
        everywhere = torch.arange(tokens.shape[1]).expand(tokens.shape)
        with quiet.with_settings(ahead=1, samples=1, baseline="none"):
            _, thoughts = quiet.think(tokens, documents, generator=step_generator(seed, 0))
            none = torch.zeros(*tokens.shape, 1, 0, dtype=torch.int64)
            plain, _, _ = quiet.predict(tokens, documents, everywhere, none)
    assert torch.equal(table.thoughts, thoughts[:, :, 0])
    for column, values in zip(
        (table.nll_base, table.nll_mix, table.weight), expected.T[:3], strict=True
    ):
        np.testing.assert_allclose(column[table.scored], values, rtol=1e-9)
    p = plain[:, :, 0, 0].exp()
    entropy = -(p * p.log()).sum(-1)
    np.testing.assert_allclose(table.entropy[table.scored], entropy[table.scored], rtol=1e-5)
    assert measure_tokens(quiet, TextRows(tokens, documents), RunConfig()).entropy.shape == (3, 0)


@given(seeds)
def test_sums_are_of_the_chosen_tokens_of_each_row(seed):
    quiet, (tokens, documents) = module(TRAINED[0], 0), batch(seed)
    table = measure_tokens(quiet, TextRows(tokens, documents), RunConfig())
    draw = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    chosen = table.scored & (draw < 0.5)
    sums = table.row_sums(chosen)
    for row in range(len(tokens)):
        at = chosen[row]
        length = (table.thoughts[row] != ENDED).sum(-1)
        columns = (at, table.nll_base[row], table.nll_mix[row], table.weight[row], length)
        expected = [sum(column[at].tolist()) for column in columns]
        assert [column[row] for column in sums] == pytest.approx(expected, rel=1e-9)


def test_other_thoughts_and_a_fixed_weight_are_used_instead():
    quiet, (tokens, documents) = module(TRAINED[0]), batch(1)

    def change(module, inside, thoughts, generator):
        assert module is quiet
        assert torch.equal(inside, documents)
        return thoughts[..., :1] * 0 + 3  # shorter ones

    table = measure_tokens(
        quiet, TextRows(tokens, documents), RunConfig(), change, fixed_weight=0.25
    )
    assert (table.thoughts == 3).all()
    assert table.thoughts.shape == (*tokens.shape, 1)
    assert (table.weight[table.scored] == 0.25).all()
    own = measure_tokens(quiet, TextRows(tokens, documents), RunConfig(), fixed_weight=0.0)
    np.testing.assert_allclose(own.nll_mix, own.nll_base, rtol=1e-9)


def test_as_many_rows_are_read_at_a_time_as_in_training():
    quiet, text, sizes = module(TRAINED[0]), TextRows(*batch(1)), []

    def change(module, inside, thoughts, generator):
        sizes.append(len(inside))
        return thoughts

    measure_tokens(quiet, text, RunConfig(batch=3), change)
    measure_tokens(quiet, text, RunConfig(batch=4, micro_batch=2), change)
    assert sizes == [3, 1, 2, 2]


def test_windows_are_rows_of_the_stream_whose_documents_keep_their_numbers(tmp_path):
    data = TokenDataset(make_world(tmp_path).data, "heldout")
    tokens, numbers = data.read(0, data.tokens)
    rows = windows(data, 48, 1000)
    inside = rows.documents != PADDING
    assert rows.tokens[inside].tolist() == tokens.tolist()
    assert rows.documents[inside].tolist() == numbers.tolist()
    assert inside[:-1].all()
    assert rows.questions is None
    assert np.array_equal(windows(data, 48, 2).tokens, rows.tokens[:2])


def test_rows_of_compiled_layers_are_filled_up_to_one_size_and_cut_again(monkeypatch):
    quiet, text = module(ThoughtConfig(thoughts=2, ahead=1)), TextRows(*batch(3, rows=3))
    sizes, forward = [], type(quiet).forward

    def counted(self, tokens, *arguments, **options):
        sizes.append(len(tokens))
        return forward(self, tokens, *arguments, **options)

    monkeypatch.setattr(type(quiet), "forward", counted)
    run, greedy = RunConfig(batch=2), {"sample_temperature": 0.0, "beta": 0.0}
    with quiet.with_settings(**greedy):
        expected = measure_tokens(quiet, text, run)
        monkeypatch.setattr(quiet.model, "compiled", True)
        found = measure_tokens(quiet, text, run)
    assert sizes == [2, 1, 2, 2]
    for field in dataclasses.fields(expected):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name))
