"""Drawn structure and seeded values: batches of rows, thoughts, and random float64 modules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from qs.config import Config, ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED
from qs.quietstar.masks import Place
from qs.quietstar.parts import Parts
from qs.quietstar.terms import Step, Terms, loss_terms, term_weights

VOCAB = 7
MIXINGS = [
    ("linear", "output"),
    ("sigmoid", "output"),
    ("sigmoid", "probability"),
    ("one", "output"),
]
torch.set_num_threads(1)  # tensors here are tiny: on a busy machine two threads are 50 times slower
seeds = st.integers(0, 2**32 - 1)


def examples(share: float) -> settings:
    """This share of the profile's examples, for properties that are slow."""
    return settings(max_examples=max(5, round(share * settings().max_examples)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded standard normal numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


@st.composite
def documents_of(draw, rows: int, length: int) -> Tensor:
    """(rows, length) documents: any cut of a row, padding (-1) at its end, even all of it."""
    result = []
    for _ in range(rows):
        cut = st.booleans() if draw(st.booleans()) else st.just(False)
        cuts = draw(st.lists(cut, min_size=length - 1, max_size=length - 1))
        padding = draw(st.integers(0, length) if draw(st.booleans()) else st.just(0))
        numbers = torch.tensor([0, *cuts]).cumsum(0)
        numbers[length - padding :] = -1
        result.append(numbers)
    return torch.stack(result)


@st.composite
def anchors_of(draw, rows: int, length: int, most: int = 3) -> Tensor:
    """(rows, A) positions, in any order, possibly repeated."""
    A = draw(st.integers(1, most))
    position = st.integers(0, length - 1)
    return torch.tensor([[draw(position) for _ in range(A)] for _ in range(rows)])


@dataclass(frozen=True)
class Scattered:
    """A visibility without any order: every pair of places is shown or hidden by a number."""

    seed: int

    def __call__(self, query: Place, key: Place) -> Tensor:
        mixed = 3 * query.anchor + 5 * query.depth + 7 * key.anchor + 11 * key.depth
        return (mixed * mixed + self.seed) % 13 > 4


visibilities = st.none() | st.builds(Scattered, st.integers(0, 12))


@st.composite
def shapes(draw, **fixed) -> ModelConfig:
    """Tiny models: grouping, window, tying and forbidden ids are drawn."""
    heads = draw(st.sampled_from([1, 2, 4]))
    values = {
        "vocab_size": VOCAB,
        "dim": 8,
        "layers": 2,
        "heads": heads,
        "kv_heads": draw(st.sampled_from([g for g in (1, 2, 4) if heads % g == 0])),
        "head_dim": draw(st.sampled_from([2, 4])),
        "hidden_dim": 12,
        "window": draw(st.none() | st.integers(1, 6)),
        "tied": draw(st.booleans()),
        "bos_id": draw(st.sampled_from([None, 1])),
        "pad_id": draw(st.sampled_from([None, 0])),
        "thought_ids": draw(st.sampled_from([(), (5, 6)])),
    }
    return ModelConfig(**(values | fixed))


@st.composite
def thought_configs(draw, **fixed) -> ThoughtConfig:
    """Any n, m, K, losses and mixing; the two refused combinations are steered around."""
    thoughts, samples = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    beta = draw(st.sampled_from([0.0, 1.0, 30.0])) if fixed.get("thoughts", thoughts) else 0.0
    alone = beta > 0 and fixed.get("samples", samples) == 1
    mix = st.sampled_from(MIXINGS)
    weight, space = draw(mix)
    drawn = draw(st.booleans())
    values = {
        "end": "drawn" if drawn else "fixed",
        "thought_cost": draw(st.sampled_from([0.0, 0.1])) if drawn else 0.0,
        "thoughts": thoughts,
        "ahead": draw(st.integers(1, 3)),
        "samples": samples,
        "beta": beta,
        "base_weight": draw(st.sampled_from([0.0, 0.5, 0.8])),
        "likelihood_weight": draw(st.sampled_from([1.0, 0.0, 0.3])),
        "reward": draw(st.sampled_from(["information-gain", "exact", "probability"])),
        "baseline": "none" if alone else draw(st.sampled_from(["mean", "others", "none"])),
        "length_norm": draw(st.booleans()),
        "keep_negative": draw(st.booleans()),
        "policy_temperature": draw(st.sampled_from([1.0, 3.0])),
        "mix_weight": weight,
        "mix_space": space,
        "embedding_scale": draw(st.sampled_from([1.0, 100.0])),
    }
    return ThoughtConfig(**(values | fixed))


@dataclass(frozen=True)
class Case:
    """A batch with given thoughts, and the seed of every parameter."""

    shape: ModelConfig
    config: ThoughtConfig
    tokens: Tensor
    documents: Tensor
    counted: Tensor
    anchors: Tensor
    thoughts: Tensor
    seed: int
    visibility: Scattered | None = None

    def __repr__(self) -> str:  # so that a failing example can be read and typed in
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shown = (
            f"{name}=torch.tensor({v.tolist()})" if torch.is_tensor(v) else f"{name}={v!r}"
            for name, v in values.items()
        )
        return f"Case({', '.join(shown)})"

    def but(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)

    def module(self, attention: str = "structured", recompute: bool = False) -> QuietStar:
        parts = Parts(visibility=self.visibility)
        return random_module(self.shape, self.config, self.seed, attention, recompute, parts)

    def step(self, module: QuietStar | None = None, **arguments) -> Step:
        batch = {
            "tokens": self.tokens,
            "documents": self.documents,
            "counted": self.counted,
            "anchors": self.anchors,
            "thoughts": self.thoughts,
        }
        return (module or self.module())(**(batch | arguments))

    def counts(self, step: Step) -> Terms:
        return step.counts

    def loss(self, step: Step, counts: Terms | None = None) -> Tensor:
        means = loss_terms(step, self.config).means(counts or self.counts(step))
        weights = term_weights(Config(thought=self.config).thinking)
        return sum(weight * term for weight, term in zip(weights, means, strict=True))


@st.composite
def cases(
    draw,
    shape=shapes(),  # noqa: B008
    config=thought_configs(),  # noqa: B008
    rows: int = 2,
    length: int = 7,
    most: int = 3,
    visibility=st.none(),  # noqa: B008
) -> Case:
    """Any batch: rows, T, documents, what counts, anchors (unsorted, repeated) and thoughts."""
    shape, config = draw(shape), draw(config)
    B, T, seed = draw(st.integers(1, rows)), draw(st.integers(1, length)), draw(seeds)
    anchors = draw(anchors_of(B, T, most))
    numbers = seeded(seed)
    counted = torch.ones((B, T), dtype=torch.bool)
    if draw(st.booleans()):
        counted = torch.rand((B, T), generator=numbers) < 0.7
    kept = torch.tensor([i for i in range(shape.vocab_size) if i not in shape.forbidden])
    size = (*anchors.shape, config.samples, config.thoughts)
    thoughts = kept[torch.randint(len(kept), size, generator=numbers)]
    if config.end == "drawn":  # each length from none to n
        lengths = torch.randint(config.thoughts + 1, size[:-1], generator=numbers)
        left = torch.arange(config.thoughts) >= lengths[..., None]
        thoughts = thoughts.masked_fill(left, ENDED)
    return Case(
        shape=shape,
        config=config,
        tokens=torch.randint(shape.vocab_size, (B, T), generator=numbers),
        documents=draw(documents_of(B, T)),
        counted=counted,
        anchors=anchors,
        thoughts=thoughts,
        seed=seed,
        visibility=draw(visibility),
    )


def random_module(
    shape: ModelConfig,
    config: ThoughtConfig,
    seed: int,
    attention: str = "structured",
    recompute: bool = False,
    parts: Parts = Parts(),  # noqa: B008
) -> QuietStar:
    """A float64 module in which no parameter is zero."""
    model = Mistral(shape, torch.float64, recompute)
    module = QuietStar(model, config, attention, parts=parts).double()
    numbers = seeded(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=numbers, dtype=torch.float64))
            if name.endswith("norm.weight"):
                p.add_(1)
            if name in ("start", "end", "end_output"):
                p.div_(config.embedding_scale)
    return module


def gradients(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter; zero where the loss does not depend on it."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    found = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))


def close(found: Tensor, expected: Tensor, rtol: float = 1e-8) -> None:
    """Equal to rtol, or to 1e-12 of the largest entry where entries cancel."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12 * max(scale, 1.0))


def same(found: Tensor, expected: Tensor) -> None:
    """Equal up to the order of float64 additions."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        try:
            close(found[name], expected[name])
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None
