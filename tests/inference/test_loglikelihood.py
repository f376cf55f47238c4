"""loglikelihood: tokens are scored as the model alone reads them, whatever they stand beside."""

import pytest
import torch
from cases import visibilities
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import module

from qs.config import ThoughtConfig
from qs.inference import loglikelihood
from qs.inference.cache import read_texts
from qs.inference.decoding import think_above, uniforms
from qs.inference.loglikelihood import ScoredText, Thinking, score, seed_of
from qs.quietstar import algorithm
from qs.quietstar.anchors import Numbers

QUIET = module(ThoughtConfig(thoughts=2, ahead=3, samples=2, beta=0.0))
DRAWN = module(ThoughtConfig(thoughts=3, end="drawn", ahead=3, samples=2, beta=0.0))


@st.composite
def scored_texts(draw):
    ids = tuple(draw(st.lists(st.integers(0, 10), min_size=2, max_size=9)))
    positions = draw(st.sets(st.integers(0, len(ids) - 2), min_size=1))
    among = draw(st.none() | st.sets(st.integers(0, 10), min_size=1, max_size=4).map(tuple))
    return ScoredText(ids, tuple(sorted(positions)), among)


def alone(quiet, text, thinking):
    """The same by one `predict` for each token, and what was thought from the same numbers."""
    K, n, L = thinking.samples, quiet.config.thoughts, len(text.positions)
    drawn = uniforms(thinking.seed, [seed_of(text.ids)], L, K * n)[1].view(L, K, n)
    log_p, likeliest, thoughts = [], [], 0
    sayable = [i for i in range(11) if i not in (1,)]  # BOS is never said
    for i, at in enumerate(text.positions):
        tokens = torch.tensor([text.ids[: at + 1]])
        documents, anchors = torch.zeros_like(tokens), torch.tensor([[at]])
        changed = dict(ahead=1, samples=K, sample_temperature=thinking.temperature)
        with quiet.with_settings(**changed), torch.no_grad():
            numbers = Numbers(torch.empty(1, 0), drawn[i].view(1, 1, K, n))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(algorithm, "draw", lambda *_, numbers=numbers: numbers)
                _, thought = quiet.think(tokens, documents, anchors)
            base, mix, _ = quiet.predict(tokens, documents, anchors, thought)
        p = base[0, 0, :, 0].exp()  # (K, V), K times the same
        if -(p[0] * p[0].log()).sum() > think_above(thinking.when):
            p, thoughts = mix[0, 0, :, 0].exp(), thoughts + K
        wanted = [*text.among] if text.among else [text.ids[at + 1]]
        log_p.append(p[:, wanted].log())
        likeliest.append(sayable[int(p.mean(0)[sayable].argmax())])
    return torch.stack(log_p, 1), likeliest, thoughts


ways = st.builds(
    Thinking,
    when=st.sampled_from(["always", "never", "entropy>0.9", "entropy>1.6"]),
    samples=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=20)
@given(
    texts=st.lists(scored_texts(), min_size=1, max_size=3),
    ways=st.lists(ways, min_size=1, max_size=2),
    budgets=st.sampled_from([(1024, 2**24), (1, 2**24), (12, 2**24), (1024, 40)]),
    again=st.booleans(),
    quiet=st.sampled_from([QUIET, DRAWN]),
    own=visibilities,
)
def test_a_batch_in_chunks_is_each_token_alone(texts, ways, budgets, again, quiet, own):
    ids, reading = [text.ids for text in texts], None
    if again:
        reading = read_texts(quiet.model, ids, 20, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quiet, "visibility", own)
        patch.setattr(loglikelihood, "SLOTS_AT_ONCE", budgets[0])
        patch.setattr(loglikelihood, "SCORED_AT_ONCE", budgets[1])
        results = score(quiet, texts, ways, reading)
        for thinking, scores in zip(ways, results, strict=True):
            for text, result in zip(texts, scores, strict=True):
                log_p, likeliest, thoughts = alone(quiet, text, thinking)
                torch.testing.assert_close(result.log_p, log_p, rtol=1e-9, atol=1e-9)
                assert (result.likeliest.tolist(), result.thoughts) == (likeliest, thoughts)


@settings(max_examples=15)
@given(texts=st.lists(scored_texts(), min_size=1, max_size=3))
def test_without_thoughts_it_is_the_plain_model(texts):
    texts = [text._replace(among=None) for text in texts]
    empty = module(ThoughtConfig(thoughts=0, ahead=1, beta=0.0))
    for quiet, when in ((QUIET, "never"), (empty, "always")):
        (scores,) = score(quiet, texts, [Thinking(when)])
        for text, result in zip(texts, scores, strict=True):
            tokens = torch.tensor([text.ids])
            step = quiet(tokens, None, None, tokens[:, :0], tokens[:, :0, None, None])
            expected = -step.nll_base[0, list(text.positions)]
            torch.testing.assert_close(result.log_p[0, :, 0], expected)
            assert result.thoughts == 0


def test_a_pause_is_thought_like_a_thought():
    quiet = module(ThoughtConfig(thoughts=2, ahead=1, samples=1, beta=0.0))
    quiet.pause = True
    text = ScoredText((1, 5, 6, 7), (1, 2))
    (((log_p, _, thoughts),),) = score(quiet, [text], [Thinking("always")])
    tokens = torch.tensor([text.ids])
    step = quiet(tokens, None, None, torch.tensor([[1, 2]]), torch.full((1, 2, 1, 2), -1))
    torch.testing.assert_close(log_p[0, :, 0], -step.nll_mix.flatten())
    assert thoughts == 2


def test_texts_have_numbers_of_their_own():
    assert seed_of([1, 2]) == seed_of((1, 2)) != seed_of([12])
    assert seed_of([1, 2]) % 2**32 == 0


def test_the_likeliest_id_is_that_of_the_mean_over_thoughts():
    quiet = module(ThoughtConfig(thoughts=3, ahead=1, samples=2, beta=0.0), seed=1)
    with torch.no_grad():
        quiet.model.layers[0].attention.wo.weight.mul_(20)  # so that it matters what is thought
    texts = [ScoredText((1, *ids), (0, 1, 2), tuple(range(11))) for ids in ((2, 3, 4), (9, 8, 7))]
    ways = [Thinking("always", 3, 5.0, seed) for seed in range(20)]
    first, mean = [], []
    for scores in score(quiet, texts, ways):
        for found in scores:
            p = found.log_p.exp()
            p[..., 1] = 0  # BOS is never said
            assert found.likeliest.tolist() == p.mean(0).argmax(-1).tolist()
            first += p[0].argmax(-1).tolist()
            mean += found.likeliest.tolist()
    assert first != mean


def test_a_position_is_thought_about_once_and_only_where_it_may_pay(monkeypatch):
    texts = [ScoredText((1, 5, 6, 7, 3, 2, 9), tuple(range(6))), ScoredText((4, 4, 8), (0, 1))]
    columns, sample = [], QUIET.sample

    def counting(documents, anchors, *others):
        columns.append(anchors.shape[1])
        return sample(documents, anchors, *others)

    monkeypatch.setattr(QUIET, "sample", counting)
    monkeypatch.setattr(loglikelihood, "SLOTS_AT_ONCE", 1)
    for when in ("always", "entropy>1.9", "never"):
        columns.clear()
        (scores,) = score(QUIET, texts, [Thinking(when)])
        assert sum(columns) == max(found.thoughts for found in scores)
        assert len(columns) > 1 or when != "always"


def saying(*shares: dict[int, float]):
    """Instead of `predict_next`: after thoughts 0, 1, .. ids have these shares, others nearly 0."""
    log_p = torch.full((len(shares), 11), -20.0, dtype=torch.float64)
    for row, ids in zip(log_p, shares, strict=True):
        for token, share in ids.items():
            row[token] = torch.tensor(share).log()
    return lambda quiet, before, after: (None, log_p.repeat(len(after) // len(shares), 1), None)


def test_the_likeliest_id_is_that_of_the_mean_probability(monkeypatch):
    shares = {2: 0.9, 3: 0.1}, {3: 0.3, 4: 0.7}  # means 0.45, 0.2, 0.35; of logarithms 3 has most
    monkeypatch.setattr(loglikelihood, "predict_next", saying(*shares))
    texts = [ScoredText((1, 5, 6), (0, 1))]
    (((_, likeliest, _),),) = score(QUIET, texts, [Thinking("always", 2)])
    assert likeliest.tolist() == [2, 2]


def test_where_nothing_is_thought_the_likeliest_id_is_the_plain_one(monkeypatch):
    texts = [ScoredText((1, 5, 6, 7), (0, 1, 2), tuple(range(11))) for _ in range(2)]
    texts[1] = texts[1]._replace(ids=(4, 4, 8, 9))
    (plain,) = score(QUIET, texts, [Thinking("never")])
    nats = torch.stack([-(found.log_p.exp() * found.log_p).sum(-1)[0] for found in plain])
    said = {i for found in plain for i in found.likeliest.tolist()}
    other = next(i for i in range(2, 11) if i not in said)
    monkeypatch.setattr(loglikelihood, "predict_next", saying({other: 1.0}))
    counts = set()
    for above in nats.flatten().tolist():
        thinks = nats > above + 1e-9
        counts |= {tuple(thinks.sum(1).tolist())}
        (scores,) = score(QUIET, texts, [Thinking(f"entropy>{above + 1e-9}")])
        for found, before, where in zip(scores, plain, thinks, strict=True):
            assert found.likeliest.tolist() == before.likeliest.where(~where, other).tolist()
    assert any(one != two for one, two in counts)  # a row waits while the other thinks
