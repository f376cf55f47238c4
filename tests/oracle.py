"""The oracle: Mistral and Quiet-STaR as slow obvious code, one branch at a time, token by token.

Keys and values are python lists, attention is plain causal attention over what has been read so
far, a sliding window counts entries back. Nothing of `qs` is used except the settings' names, so
that no rule is checked against itself. Everything is differentiable in the parameters given.

Each document of a row is read on its own from position 0; a branch continues from what its
document holds up to its anchor. Padding (document -1) is read like a document and never judged.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig

Parameters = dict[str, Tensor]
ZERO = torch.zeros((), dtype=torch.float64)


def forbidden(shape: ModelConfig) -> set[int]:
    """Ids that no thought may hold."""
    return {i for i in (shape.bos_id, shape.pad_id) if i is not None} | set(shape.thought_ids)


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of one vector."""
    return weight * x / ((x * x).sum() / len(x) + eps) ** 0.5


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotary embedding of one head: x[i] + j x[i + d/2] times exp(j position theta^(-2 i / d))."""
    half = len(x) // 2
    angles = [position * theta ** (-2 * i / len(x)) for i in range(half)]
    turned = torch.complex(x[:half], x[half:]) * torch.tensor(
        [cmath.exp(1j * a) for a in angles], dtype=torch.complex128
    )
    return torch.cat([turned.real, turned.imag])


class Place(NamedTuple):
    """Text position, and how far along a thought after it (0: the text itself)."""

    anchor: int
    depth: int


Visibility = Callable[[Place, Place], bool]


class Reader:
    """A Mistral that has read some tokens. `read` one more; `fork` to go on in two ways."""

    def __init__(
        self,
        parameters: Parameters,
        shape: ModelConfig,
        visibility: Visibility | None = None,
        anchor: int = -1,
    ):
        self.parameters, self.shape, self.visibility = parameters, shape, visibility
        self.anchor, self.places = anchor, []  # of the text read last, and of every token
        self.keys = [[] for _ in range(shape.layers)]  # [layer][token][head] -> (d,)
        self.values = [[] for _ in range(shape.layers)]

    def fork(self) -> Reader:
        other = Reader(self.parameters, self.shape, self.visibility, self.anchor)
        other.places = list(self.places)
        other.keys = [list(entries) for entries in self.keys]
        other.values = [list(entries) for entries in self.values]
        return other

    def read(self, x: Tensor, depth: int = 0) -> Tensor:
        """(D,) embedding of the next token, of text or of a thought -> (D,) output."""
        shape, position = self.shape, len(self.keys[0])
        self.anchor += depth == 0
        self.places.append(Place(self.anchor, depth))
        first = 0 if shape.window is None else max(0, position + 1 - shape.window)
        seen = [i for i in range(first, position + 1) if self.shows(i)]
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            p = {
                name.removeprefix(f"model.layers.{layer}."): value
                for name, value in self.parameters.items()
            }
            h = normalise(x, p["attention_norm.weight"], shape.norm_eps)
            query = (p["attention.wq.weight"] @ h).split(shape.head_dim)
            key = (p["attention.wk.weight"] @ h).split(shape.head_dim)
            keys.append([turn(one, position, shape.rope_theta) for one in key])
            values.append((p["attention.wv.weight"] @ h).split(shape.head_dim))
            heads = []
            for head in range(shape.heads):
                group = head // (shape.heads // shape.kv_heads)
                turned = turn(query[head], position, shape.rope_theta)
                near = torch.stack([keys[i][group] for i in seen])
                weights = likelihood(near @ turned / math.sqrt(shape.head_dim))
                heads.append(weights @ torch.stack([values[i][group] for i in seen]))
            x = x + p["attention.wo.weight"] @ torch.cat(heads)
            h = normalise(x, p["ffn_norm.weight"], shape.norm_eps)
            gate = p["feed_forward.w1.weight"] @ h
            inner = gate / (1 + (-gate).exp()) * (p["feed_forward.w3.weight"] @ h)
            x = x + p["feed_forward.w2.weight"] @ inner
        return normalise(x, self.parameters["model.norm.weight"], shape.norm_eps)

    def shows(self, i: int) -> bool:
        """Does the token read last see that one, as far as a rule of one's own is asked?"""
        last = self.places[-1]
        itself = i == len(self.places) - 1
        return itself or self.visibility is None or bool(self.visibility(last, self.places[i]))


def likelihood(logits: Tensor) -> Tensor:
    """Softmax of one vector."""
    weights = (logits - logits.detach().max()).exp()
    return weights / weights.sum()


def logits(parameters: Parameters, output: Tensor) -> Tensor:
    """(D,) output -> (V,) logits, head tied or not."""
    head = parameters.get("model.output.weight", parameters["model.tok_embeddings.weight"])
    return head @ output


def nll(parameters: Parameters, output: Tensor, target: int) -> Tensor:
    """NLL in nats of a token under an output."""
    return -likelihood(logits(parameters, output))[target].log()


def log_p(scores: Tensor, token: int, temperature: float, never: set[int]) -> Tensor:
    """Log-probability in nats of a token, where some tokens cannot occur."""
    kept = [i for i in range(len(scores)) if i not in never]
    return likelihood(scores[kept] / temperature)[kept.index(token)].log()


def cut(thought: list[int]) -> tuple[list[int], bool]:
    """The tokens of a thought, and whether it drew its end before its last place."""
    tokens = [i for i in thought if i != -2]
    return tokens, len(tokens) < len(thought)


def with_end(parameters: Parameters, config: ThoughtConfig, output: Tensor) -> Tensor:
    """(D,) output -> logits of what a thought goes on with; its end, if drawn, is the last."""
    scores = logits(parameters, output)
    if config.end == "fixed":
        return scores
    end = (parameters["end_output"] * config.embedding_scale * output).sum()
    return torch.cat([scores, end[None]])


def pick(scores: list[float], uniform: float, temperature: float, never: set[int]) -> int:
    """The token at which the running sum of probabilities passes `uniform`; 0: the likeliest."""
    kept = [i for i in range(len(scores)) if i not in never]
    if temperature == 0:
        return max(kept, key=lambda i: scores[i])
    top = max(scores[i] for i in kept)
    mass = [math.exp((scores[i] - top) / temperature) for i in kept]
    running, point = 0.0, uniform * math.fsum(mass)
    for i, part in zip(kept, mass, strict=True):
        running += part
        if running > point:
            return i
    return kept[-1]


def mixer(parameters: Parameters, base: Tensor, thought: Tensor) -> Tensor:
    """Score of one mixing."""
    x = torch.cat([base, thought])
    for layer in (0, 2):
        x = parameters[f"mixer.{layer}.weight"] @ x + parameters[f"mixer.{layer}.bias"]
        x = x * (x > 0)
    return (parameters["mixer.4.weight"] @ x)[0]


@dataclass
class Answer:
    """What a step should find. Keys are (b, t), (b, a, k) or (b, a, k, i - 1); only what counts."""

    base: dict = field(default_factory=dict)
    """(b, t) -> (D,) output of the text."""
    branch: dict = field(default_factory=dict)
    """(b, a, k) -> l + m + 1 outputs (D,) of l tokens, fewer at the row's end."""
    nll_base: dict = field(default_factory=dict)
    nll_mix: dict = field(default_factory=dict)
    weight: dict = field(default_factory=dict)
    reward: dict = field(default_factory=dict)
    log_p: dict = field(default_factory=dict)
    terms: tuple = ()
    """base, talk, policy: means."""
    loss: Tensor | None = None


def read_text(
    parameters: Parameters,
    shape: ModelConfig,
    tokens: Tensor,
    documents: Tensor,
    visibility: Visibility | None = None,
) -> tuple[dict, dict]:
    """Read every document on its own.

    Returns:
        (b, t) -> output (D,), and (b, t) -> Reader that stopped after t.
    """
    outputs, stopped = {}, {}
    for b, row in enumerate(tokens.tolist()):
        readers = {}
        for t, token in enumerate(row):
            document = int(documents[b, t])
            reader = readers.setdefault(document, Reader(parameters, shape, visibility, t - 1))
            outputs[b, t] = reader.read(parameters["model.tok_embeddings.weight"][token])
            stopped[b, t] = reader.fork()
    return outputs, stopped


def think(
    reader: Reader,
    config: ThoughtConfig,
    start: Tensor,
    uniforms: list[float],
    temperature: float,
) -> tuple[list[int], list[Tensor]]:
    """One thought, one token at a time: its tokens, and the logits each was drawn from.

    Its end, where drawn, is the token after the vocabulary, and the last one.
    """
    parameters, reader = reader.parameters, reader.fork()
    x, tokens, seen = start, [], []
    for depth, uniform in enumerate(uniforms, 1):
        seen.append(with_end(parameters, config, reader.read(x, depth)))
        tokens.append(pick(seen[-1].tolist(), uniform, temperature, forbidden(reader.shape)))
        if tokens[-1] == reader.shape.vocab_size:
            break
        x = parameters["model.tok_embeddings.weight"][tokens[-1]]
    return tokens, seen


def mean(values: list[Tensor], count: int) -> Tensor:
    """A sum over a count; 0 of nothing."""
    return sum(values, ZERO) / max(count, 1)


def judge(
    parameters: Parameters,
    shape: ModelConfig,
    config: ThoughtConfig,
    tokens: Tensor,
    documents: Tensor,
    counted: Tensor,
    anchors: Tensor,
    thoughts: Tensor,
    fixed_weight: float | None = None,
    visibility: Visibility | None = None,
) -> Answer:
    """One whole step, given the thoughts; arguments as of `QuietStar.forward`."""
    answer, m, n, own = Answer(), config.ahead, thoughts.shape[3], {}
    rows, embeddings = tokens.tolist(), parameters["model.tok_embeddings.weight"]
    answer.base, stopped = read_text(parameters, shape, tokens, documents, visibility)

    def counts(b: int, t: int, later: int) -> bool:
        """Is the token at `later` one that position t may be judged on?"""
        inside = later < len(rows[b])
        return inside and documents[b, t] == documents[b, later] != -1 and bool(counted[b, later])

    for b, row in enumerate(rows):
        for t in range(len(row)):
            if counts(b, t, t + 1):
                answer.nll_base[b, t] = nll(parameters, answer.base[b, t], row[t + 1])

    for b, a, k in torch.cartesian_prod(*map(torch.arange, thoughts.shape[:3])).tolist():
        row, t, reader = rows[b], int(anchors[b, a]), stopped[b, int(anchors[b, a])].fork()
        thought, ended = cut(thoughts[b, a, k].tolist())
        start, end = (parameters[name] * config.embedding_scale for name in ("start", "end"))
        slots = [start, *(embeddings[i] for i in thought), end]
        slots += [embeddings[i] for i in row[t + 1 : t + m]]
        outputs = answer.branch[b, a, k] = [reader.read(x, d) for d, x in enumerate(slots, 1)]

        chosen = [ZERO]
        actions = thought + [shape.vocab_size] * ended
        for output, token in zip(outputs, actions, strict=False):
            scores = with_end(parameters, config, output)
            chosen.append(log_p(scores, token, config.policy_temperature, forbidden(shape)))
        answer.log_p[b, a, k] = sum(chosen)

        gains = []
        for i in range(1, m + 1):
            if not counts(b, t, t + i):
                continue
            plain, after = answer.base[b, t + i - 1], outputs[len(thought) + i]
            target = row[t + i]
            score = mixer(parameters, plain, after)
            w = {"linear": score, "sigmoid": 1 / (1 + (-score).exp()), "one": ZERO + 1}
            w = w[config.mix_weight]
            if fixed_weight is not None:
                w = ZERO + fixed_weight
            if config.mix_space == "output":
                p = likelihood(logits(parameters, (1 - w) * plain + w * after))
            else:
                p_plain, p_after = (likelihood(logits(parameters, x)) for x in (plain, after))
                p = (1 - w) * p_plain + w * p_after
            mixed = -p[target].log()
            answer.weight[b, a, k, i - 1] = w
            answer.nll_mix[b, a, k, i - 1] = mixed
            if config.reward == "exact":
                gains.append(float(p.argmax() == target))
            elif config.reward == "probability":
                gains.append(p[target].item() / m)
            else:
                gains.append((answer.nll_base[b, t + i - 1] - mixed).item())
        if len(gains) == m:
            earned = min(gains) if config.reward == "exact" else sum(gains)
            answer.reward[b, a, k] = earned - config.thought_cost * len(thought)
        if config.length_norm:
            own[b, a, k] = n / max(len(actions), 1)

    talk = []
    for i in range(m):
        parts = [value for key, value in answer.nll_mix.items() if key[3] == i]
        talk.append(mean(parts, len(parts)))
    policy = []
    for (b, a, k), earned in answer.reward.items():
        with_it = [value for key, value in answer.reward.items() if key[:2] == (b, a)]
        without = [v for key, v in answer.reward.items() if key[:2] == (b, a) and key[2] != k]
        among = {"mean": with_it, "others": without, "none": []}[config.baseline]
        advantage = earned - (sum(among) / len(among) if among else 0)
        if advantage > 0 or config.keep_negative:
            policy.append(-advantage * answer.log_p[b, a, k] * own.get((b, a, k), 1))
    base = mean(list(answer.nll_base.values()), len(answer.nll_base))
    answer.terms = (base, mean(talk, m), mean(policy, len(answer.reward) * n))
    answer.loss = config.base_weight * base + (1 - config.base_weight) * answer.terms[1]
    answer.loss = config.likelihood_weight * answer.loss
    if config.beta > 0:
        answer.loss = answer.loss + config.beta * answer.terms[2]
    return answer
