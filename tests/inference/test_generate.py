"""generate: cached decoding gives what recomputing the whole row for every token gives."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import (
    VOCAB,
    Scattered,
    close,
    examples,
    random_module,
    seeded,
    seeds,
    shapes,
    visibilities,
)
from cases import thought_configs as configs
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import forbidden, pick, with_end
from torch import Tensor

import qs.inference.generate
from qs.config import ThoughtConfig
from qs.inference.cache import read_texts
from qs.inference.decoding import Decoding, Generated, OutputToken, uniforms
from qs.inference.generate import Stream
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import PAUSE, QuietStar

SHAPE = ModelConfig(5, 8, 1, 1, 1, 4, 8, max_positions=8)
temperatures = st.sampled_from([1.0, 0.0, 0.5, 3.0])


@dataclass(frozen=True)
class Asked:
    """Prompts, how to go on from them, and the seed of every parameter."""

    shape: ModelConfig
    config: ThoughtConfig
    decoding: Decoding
    prompts: list[list[int]]
    pause: bool
    seed: int
    visibility: Scattered | None = None

    def but(self, **changes) -> Asked:
        """Other settings, of whichever group has them."""
        groups = {}
        for group in ("shape", "config", "decoding"):
            settings = getattr(self, group)
            mine = {k: changes.pop(k) for k in list(changes) if hasattr(settings, k)}
            groups[group] = dataclasses.replace(settings, **mine)
        return dataclasses.replace(self, **groups, **changes)

    def module(self, attention: str = "structured") -> QuietStar:
        module = random_module(self.shape, self.config, self.seed, attention)
        module.pause, module.visibility = self.pause, self.visibility
        return module

    def stream(self, **arguments) -> Stream:
        return Stream(self.module(), self.prompts, self.decoding, self.seed, **arguments)

    def generate(self, **arguments) -> list[Generated]:
        return Stream(self.module(), self.prompts, self.decoding, self.seed, **arguments).finish()


@st.composite
def asked(draw, thoughts=(2, 0, 1, 3), **fixed) -> Asked:
    """Anything. The first of each list is what Hypothesis tries most: the whole machinery."""
    config = draw(configs(thoughts=draw(st.sampled_from(thoughts))))
    often = {
        "window": draw(st.sampled_from([3, None, 1, 2, 6])),
        "pad_id": draw(st.sampled_from([0, None, 2])),  # 2 is EOS
    }
    if "eos_id" not in fixed:
        often["other_ends"] = draw(st.sampled_from([(), (3,), (0,), (4, 1)]))
    shape = draw(shapes(**often | fixed))
    decoding = Decoding(
        max_tokens=draw(st.sampled_from([4, 1, 2, 3, 5])),
        temperature=draw(temperatures),
        top_p=draw(st.sampled_from([0.8, 1.0, 0.3])),
        think_temperature=draw(st.sampled_from([3.0, 1.0, 0.0])),
        think_when=draw(st.sampled_from(["entropy>1.5", "always", "never", "entropy>1.7"])),
        fixed_weight=draw(st.sampled_from([None, None, 0.25])),
    )
    lengths = draw(st.lists(st.sampled_from([3, 1, 2, 4, 5]), min_size=1, max_size=3))
    pause, seed = draw(st.sampled_from([False] * 3 + [True])), draw(seeds)
    numbers = seeded(seed)
    prompts = [torch.randint(VOCAB, (size,), generator=numbers).tolist() for size in lengths]
    return Asked(shape, config, decoding, prompts, pause, seed, draw(visibilities))


def pick_top(scores: list[float], uniform: float, temperature: float, top_p: float, never: set):
    """`oracle.pick` from the likeliest tokens that together have top_p."""
    if temperature > 0:
        kept = sorted((i for i in range(len(scores)) if i not in never), key=lambda i: -scores[i])
        mass = [math.exp((scores[i] - scores[kept[0]]) / temperature) for i in kept]
        count = next(
            k
            for k in range(1, len(kept) + 1)
            if k == len(kept) or sum(mass[:k]) >= top_p * sum(mass)
        )
        never = never | set(kept[count:])
    return pick(scores, uniform, temperature, never)


def text_ends(case: Asked) -> set[int | None]:
    return {case.shape.eos_id, *case.shape.other_ends}


def slowly(case: Asked, row: int, ends: set[int] = frozenset()) -> list[OutputToken]:
    """What follows a prompt; for every token everything is computed again, with a dense mask."""
    module, how, n = case.module("dense"), case.decoding, case.config.thoughts
    states = np.random.SeedSequence([case.seed, row]).generate_state(2, np.uint64)
    said, thinking = (seeded(int(state)) for state in states)
    said = torch.rand(how.max_tokens, generator=said, dtype=torch.float64).tolist()
    thinking = torch.rand(how.max_tokens, n, generator=thinking, dtype=torch.float64).tolist()
    never, text, found = forbidden(case.shape), list(case.prompts[row]), []
    while not found or (len(found) < how.max_tokens and found[-1].id not in ends):
        tokens, anchors = torch.tensor([text]), torch.tensor([[len(text) - 1]])
        read = (tokens, torch.zeros_like(tokens), anchors)
        base, _ = module.score(*read, torch.empty((1, 1, 1, 0), dtype=torch.int64))
        log_p = module.model.logits(base[0, -1]).log_softmax(0)
        nats = -sum(math.exp(x) * x for x in log_p.tolist())
        above = {"always": -1.0, "never": 100.0}.get(how.think_when)
        if above is None:
            above = float(how.think_when.removeprefix("entropy>"))
        thought, weight = None, None
        if n > 0 and nats > above:
            thought = []
            for uniform in thinking[len(found)]:
                given = torch.tensor([[[thought]]], dtype=torch.int64)
                _, branch = module.score(*read, given)
                output = branch[0, 0, 0, len(thought)]
                scores = with_end(dict(module.named_parameters()), case.config, output).tolist()
                drawn = pick(scores, uniform, how.think_temperature, never)
                if drawn == VOCAB and not case.pause:
                    break
                thought.append(PAUSE if case.pause else drawn)
            given = torch.tensor([[[thought]]], dtype=torch.int64)
            _, mixed, weights = module.predict(*read, given, fixed_weight=how.fixed_weight)
            log_p, weight = mixed[0, 0, 0, 0], weights[0, 0, 0, 0].item()
        scores, uniform = log_p.tolist(), said[len(found)]
        unsaid = never - text_ends(case)
        id = pick_top(scores, uniform, how.temperature, how.top_p, unsaid)
        thought = None if thought is None else tuple(thought)
        found.append(OutputToken(id, thought, weight, nats, scores[id]))
        text.append(id)
    return found


def same_tokens(found: list[OutputToken], expected: list[OutputToken]) -> None:
    assert [t[:2] for t in found] == [t[:2] for t in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.weight is None) == (other.weight is None)
        numbers = [[t.weight or 0.0, t.entropy, t.log_p] for t in (one, other)]
        close(*(torch.tensor(x, dtype=torch.float64) for x in numbers))


# Equal to naive code


@given(case=asked())
@torch.no_grad()
def test_decoding_equals_recomputing_everything_for_every_token(case: Asked):
    for row, found in enumerate(case.generate()):
        same_tokens(found.tokens, slowly(case, row, text_ends(case)))


@torch.no_grad()
def test_those_who_think_draw_by_their_own_numbers():
    config, decoding = ThoughtConfig(thoughts=3), Decoding(max_tokens=1, think_temperature=3.0)
    case = Asked(SHAPE, config, decoding, [[2, 3], [4], [3]], False, 0)
    first, *others = (row.tokens[0].entropy for row in case.but(think_when="never").generate())
    assert first + 1e-3 < min(others)
    case = case.but(think_when=f"entropy>{first + 1e-3}")
    for row, found in enumerate(case.generate()):
        same_tokens(found.tokens, slowly(case, row))


@torch.no_grad()
def test_a_token_is_thought_about_above_the_entropy_and_not_at_it():
    config, decoding = ThoughtConfig(thoughts=2), Decoding(max_tokens=1)
    case = Asked(SHAPE, config, decoding, [[2, 3], [4]], False, 0)
    for prompt in case.prompts:
        one = case.but(prompts=[prompt])
        (row,) = one.but(think_when="never").generate()
        nats = row.tokens[0].entropy
        for above, thinks in ((nats, False), (math.nextafter(nats, 0), True)):
            (row,) = one.but(think_when=f"entropy>{above}").generate()
            assert (row.tokens[0].thought is not None) == thinks


@given(case=asked())
@examples(0.5)
@torch.no_grad()
def test_without_weight_for_the_thought_it_says_what_plain_decoding_says(case: Asked):
    plain = case.but(think_when="never").generate()
    for found, expected in zip(case.but(fixed_weight=0.0).generate(), plain, strict=True):
        without = [t._replace(thought=None, weight=None) for t in found.tokens]
        same_tokens(without, expected.tokens)


@given(case=asked(thoughts=[0]))
@examples(0.5)
def test_a_thought_of_no_tokens_is_no_thought(case: Asked):
    assert case.generate() == case.but(think_when="never").generate()


@given(case=asked())
@examples(0.5)
def test_a_row_does_not_depend_on_what_it_is_batched_with(case: Asked):
    together = case.generate()
    for row, expected in enumerate(together):
        (alone,) = case.but(prompts=[case.prompts[row]]).generate(numbers=[row])
        same_tokens(alone.tokens, expected.tokens)
        assert alone.reason == expected.reason


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
@torch.no_grad()
def test_narrow_arithmetic_gives_its_own_predictions(dtype: torch.dtype, atol: float):
    shape = ModelConfig(VOCAB, dim=8, layers=2, heads=4, kv_heads=2, head_dim=4, hidden_dim=12)
    config = ThoughtConfig(thoughts=2, ahead=1)
    module = QuietStar(Mistral(shape, dtype), config, "dense")
    wide = random_module(shape, config, 3)
    module.load_state_dict(wide.state_dict())
    prompts = [[1, 3, 4], [5]]
    decoding = Decoding(max_tokens=6, temperature=1.0, think_when="entropy>1.5")
    found = Stream(module, prompts, decoding, seed=1).finish()
    thought = {token.thought is not None for row in found for token in row.tokens}
    assert thought == {True, False}
    for prompt, row in zip(prompts, found, strict=True):
        text = list(prompt)
        for token in row.tokens:
            tokens, anchors = torch.tensor([text]), torch.tensor([[len(text) - 1]])
            given = torch.tensor([[[token.thought or (0, 0)]]])
            plain, mixed, _ = wide.predict(tokens, torch.zeros_like(tokens), anchors, given)
            expected = plain if token.thought is None else mixed
            assert abs(expected[0, 0, 0, 0, token.id].item() - token.log_p) < atol
            text.append(token.id)


# What it costs


@given(case=asked())
@examples(0.5)
def test_a_token_costs_at_most_its_thought_and_itself(case: Asked):
    stream, n, fed = case.stream(), case.config.thoughts, []
    run = stream.quiet.model.forward

    def counting(x: Tensor, *rest) -> Tensor:
        fed.append(tuple(x.shape[:2]))
        return run(x, *rest)

    stream.quiet.model.forward = counting
    going, passes = len(case.prompts), 0
    for number, step in enumerate(stream):
        assert len(step) == going
        assert all(rows <= going for rows, _ in fed[passes:])
        spent = len(fed) - passes - (number == 0)
        if case.decoding.think_when == "never" or n == 0:
            assert spent == (number > 0)
        elif case.decoding.think_when == "always":
            deepest = max(len(token.thought) for _, token in step)
            # one whose thought is full is fed its last token and its end at once
            assert spent == (1 if case.pause else min(deepest + 2, n + 1))
        else:
            assert spent <= n + 2
        going, passes = stream.reasons.count(None), len(fed)
    assert fed[0] == (len(case.prompts), max(map(len, case.prompts)))

    counts, rows = stream.counts, stream.results()
    slots = sum(map(len, case.prompts)) + sum(rows * each for rows, each in fed[1:])
    assert counts.passes == len(fed)
    assert counts.slots <= slots
    assert counts.slots == slots or case.config.end == "drawn"
    text = sum(len(p) + len(row.ids) - 1 for p, row in zip(case.prompts, rows, strict=True))
    thoughts = [token.thought for row in rows for token in row.tokens if token.thought is not None]
    assert counts.slots == text + sum(len(thought) + 2 for thought in thoughts)
    assert counts.tokens == sum(len(row.ids) for row in rows)
    assert counts.thoughts == sum(t.thought is not None for row in rows for t in row.tokens)


@given(case=asked())
@examples(0.5)
def test_steps_put_together_are_the_results(case: Asked):
    stream, texts = case.stream(), [[] for _ in case.prompts]
    assert [row.tokens for row in stream.results()] == [()] * len(case.prompts)
    for step in stream:
        for row, token in step:
            texts[row].append(token)
        assert [list(row.tokens) for row in stream.results()] == texts
    assert stream.results() == case.generate()
    assert list(stream) == []


@given(case=asked(), data=st.data())
@examples(0.5)
@torch.no_grad()
def test_prompts_that_were_read_already_go_on_in_the_same_way(case: Asked, data):
    longer = [prompt + data.draw(st.lists(st.just(3), max_size=2)) for prompt in case.prompts]
    reading = read_texts(case.module().model, longer, 7, case.visibility)
    room = case.decoding.max_tokens + case.config.thoughts + 2
    again = case.generate(reading=reading.until([len(prompt) for prompt in case.prompts], room))
    for row, expected in zip(again, case.generate(), strict=True):
        same_tokens(row.tokens, expected.tokens)
        assert row.reason == expected.reason


def test_no_prompts_give_nothing():
    assert Stream(random_module(SHAPE, ThoughtConfig(), 0), [], Decoding()).finish() == []


# What is drawn


@given(case=asked(), edge=st.sampled_from([0.0, math.nextafter(1, 0)]))
@examples(0.5)
def test_nothing_forbidden_is_thought_or_said(case: Asked, edge: float):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            qs.inference.generate,
            "uniforms",
            lambda *args: [x.fill_(edge) for x in uniforms(*args)],
        )
        rows = case.generate()
    never = forbidden(case.shape)
    for row in rows:
        assert not set(row.ids) & (never - text_ends(case))
        for token in row.tokens:
            assert not set(token.thought or ()) & never
            assert case.pause or PAUSE not in (token.thought or ())


# Where it ends


@given(case=asked(eos_id=None, bos_id=None, pad_id=None), data=st.data())
@examples(0.5)
def test_a_row_ends_with_the_first_token_that_ends_it(case: Asked, data):
    whole = [row.ids for row in case.generate()]
    assert all(len(ids) == case.decoding.max_tokens for ids in whole)
    end = data.draw(st.sampled_from(whole[0]))
    ends = data.draw(st.sampled_from([{"eos_id": end}, {"other_ends": (end,)}]))
    for row, ids in zip(case.but(**ends).generate(), whole, strict=True):
        expected = ids[: ids.index(end) + 1] if end in ids else ids
        assert row.ids == expected
        assert row.reason == ("eos" if end in ids else "length")
        assert row.text_ids == (expected[:-1] if end in ids else ids)


@given(case=asked(eos_id=None), data=st.data())
@examples(0.5)
def test_a_row_ends_where_it_is_told_to(case: Asked, data):
    whole = [row.ids for row in case.generate()]
    limits = [data.draw(st.integers(1, case.decoding.max_tokens)) for _ in whole]
    for row, ids in enumerate(case.generate(stop=lambda row, ids: len(ids) == limits[row])):
        assert ids.ids == ids.text_ids == whole[row][: limits[row]]
        assert ids.reason == "stop"
    rows = case.generate(stop=lambda row, ids: ids != whole[row][: len(ids)])
    assert [row.reason for row in rows] == ["length"] * len(whole)


@given(case=asked(eos_id=None), positions=st.integers(1, 14))
@examples(0.5)
def test_no_row_grows_past_the_positions_of_the_model(case: Asked, positions: int):
    thinks = case.decoding.think_when != "never" and case.config.thoughts > 0
    after = case.config.thoughts + 2 if thinks else 1
    assume(max(map(len, case.prompts)) + after <= positions)
    for row, ids in enumerate(case.but(max_positions=positions, max_tokens=20).generate()):
        assert ids.reason == "length"
        assert len(case.prompts[row]) + len(ids.ids) + after == positions + 1


# Refusals


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ([[1], []], {}, "prompt 1: expected at least one token"),
        ([[1], [2, 5]], {}, r"prompt 1: expected ids in \[0, 5\), got 5"),
        ([[1], [-1]], {}, r"prompt 1: expected ids in \[0, 5\), got -1"),
        ([[1], [2] * 5], {}, "prompt 1: 5 tokens and a thought of 4 .* exceed the 8 positions"),
        (
            [[1] * 8],
            {"decoding": Decoding(think_when="never")},
            "8 tokens and one after them exceed",
        ),
        ([[1], [2]], {"numbers": [0]}, "expected 2 numbers of rows, got 1"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompts, arguments, message: str):
    module = random_module(SHAPE, ThoughtConfig(thoughts=2), 0)
    with pytest.raises(ValueError, match=message):
        Stream(module, prompts, **{"decoding": Decoding()} | arguments).finish()
