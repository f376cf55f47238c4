"""Quiet-STaR, one step, stage by stage. Read this file first.

    1. base    one causal pass over the text
    2. think   after every anchor, K thoughts sampled from the model itself (no gradient)
    3. score   text and all branches in one packed pass; each thought is judged on m true tokens
    4. mix     the prediction after the thought is mixed into the prediction without it
    5. losses  NLL of base and mixed predictions, and REINFORCE on the thought's tokens

Given the thoughts a step is a deterministic function of tokens and parameters, which is what lets
tests compare values and gradients with running every branch alone.

Source: Quiet-STaR (arXiv:2403.09629), section 4 and algorithm 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qs.config import PADDING, Config, ThoughtConfig
from qs.model.mistral import Mistral
from qs.quietstar.attention import Dense, Flex, Structured
from qs.quietstar.losses import Terms, linear_nll, reinforce, rewards, targets_ahead
from qs.quietstar.masks import Layout, block_mask, dense_mask, every_position, one_document
from qs.quietstar.mixer import Mixed, MixingHead, mixed_log_p, mixed_nll, mixing_weight
from qs.quietstar.sampler import prefill, sample

PAUSE = -1  # in place of a thought's token: the start vector once more (Goyal et al. 2023)


class Step(NamedTuple):
    """What one step computed, position by position. NLL and rewards in nats.

    Attributes:
        nll_base: (B, T) NLL of x[t+1] without thoughts; 0 where it does not count.
        nll_mix: (B, A, K, m) NLL of x[t+i] after thought k; 0 where it does not count.
        log_p: (B, A, K) log-probability of each thought at the policy temperature.
        reward: (B, A, K) what each thought earned.
        weight: (B, A, K, m) mixing weights, constants for the gradient.
        base_valid: (B, T) and
        valid: (B, A, m) which targets count.
        anchors: (B, A) positions that thought.
        thoughts: (B, A, K, n) tokens thought.
    """

    nll_base: Tensor
    nll_mix: Tensor
    log_p: Tensor
    reward: Tensor
    weight: Tensor
    base_valid: Tensor
    valid: Tensor
    anchors: Tensor
    thoughts: Tensor


class QuietStar(nn.Module):
    """A Mistral that thinks: the model, two learned vectors and the mixing head.

    Args:
        model: the language model.
        config: what a thought is.
        attention: realisation of the visibility rule in the packed pass: "structured", "flex" (fast
            on CUDA under torch.compile) or "dense" (the oracle).
        pause: thoughts are n pauses (the start vector again) instead of sampled tokens.
    """

    def __init__(
        self,
        model: Mistral,
        config: ThoughtConfig,
        attention: str = "structured",
        pause: bool = False,
    ):
        super().__init__()
        self.model = model
        self.config = config
        self.attention = attention
        self.pause = pause
        self.start = nn.Parameter(torch.zeros(model.config.dim))
        self.end = nn.Parameter(torch.zeros(model.config.dim))
        self.mixer = MixingHead(model.config.dim)

    @torch.no_grad()
    def initialise(self, start_ids: list[int], end_ids: list[int]) -> None:
        """Begin the start and end vectors from the mean embedding of some tokens (of `---`)."""
        for vector, ids in ((self.start, start_ids), (self.end, end_ids)):
            rows = self.model.tok_embeddings.weight[ids]
            vector.copy_(rows.mean(0) / self.config.embedding_scale)

    @contextlib.contextmanager
    def with_settings(self, **changes) -> Iterator[None]:
        """Think under other settings for a while (another length, temperature, ...)."""
        before = self.config
        self.config = dataclasses.replace(before, **changes)
        try:
            yield
        finally:
            self.config = before

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        counted: Tensor | None = None,
        anchors: Tensor | None = None,
        thoughts: Tensor | None = None,
        generator: torch.Generator | None = None,
        fixed_weight: float | None = None,
    ) -> Step:
        """One step: base, think, score, mix.

        Args:
            tokens: (B, T) ids.
            documents: (B, T) document of each position, -1 for padding; None: one document a row.
            counted: (B, T) True where a token counts as a target; None: everywhere.
            anchors: (B, A) positions that think; None: as `config.anchors` says.
            thoughts: (B, A, K, n) tokens (or PAUSE) to use instead of sampling; needs `anchors`
                unless all positions think.
            generator: on the CPU; source of sampled thoughts and random anchors.
            fixed_weight: mixing weight to use instead of the head's (1: always the thought).

        Raises:
            ValueError: thoughts of a wrong shape.
        """
        if documents is None:
            documents = one_document(tokens)
        if thoughts is None:
            anchors, thoughts = self.think(tokens, documents, anchors, generator)
        elif anchors is None:
            anchors = every_position(tokens)
        if thoughts.shape[:2] != anchors.shape:
            raise ValueError(
                f"thoughts {tuple(thoughts.shape)} do not fit {tuple(anchors.shape)} anchors: "
                "expected (B, A, K, n)"
            )
        base, branch = self.score(tokens, documents, anchors, thoughts)
        return self.judge(tokens, documents, counted, anchors, thoughts, base, branch, fixed_weight)

    def draw(
        self, B: int, T: int, generator: torch.Generator | None, anchors: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The random numbers of B rows, row after row: splitting a batch draws the same ones.

        Args:
            B, T: rows and positions.
            generator: on the CPU.
            anchors: A where positions are given; None: as `config.anchors` says.

        Returns:
            (B, T) numbers that order random anchors ((B, 0) if none are drawn), and (B, A, K, n)
            float64 numbers that thoughts are sampled by, all in [0, 1).
        """
        config = self.config
        ordered = T if anchors is None and config.anchors == "random" else 0
        A = config.anchor_count(T) if anchors is None else anchors
        orders = torch.empty(B, ordered)
        uniforms = torch.empty((B, A, config.samples, config.thoughts), dtype=torch.float64)
        for row in range(B):
            orders[row].uniform_(generator=generator)
            uniforms[row].uniform_(generator=generator)
        return orders, uniforms

    @torch.no_grad()
    def think(
        self,
        tokens: Tensor,
        documents: Tensor,
        anchors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Stages 1 and 2: read the text, choose who thinks, sample their thoughts.

        Args:
            tokens, documents: (B, T).
            anchors: (B, A) positions that think; None: as `config.anchors` says.
            generator: on the CPU.

        Returns:
            anchors (B, A) and thoughts (B, A, K, n).
        """
        config = self.config
        count = None if anchors is None else anchors.shape[1]
        orders, uniforms = self.draw(*tokens.shape, generator, count)
        unsure = anchors is None and config.anchors == "uncertain"
        if unsure or not self.pause:
            outputs, cache = prefill(self.model, tokens, documents)
        if anchors is None and config.anchors == "all":
            anchors = every_position(tokens)
        elif anchors is None:
            if config.anchors == "random":
                order = orders.to(tokens.device)
            else:
                log_p = (self.model.logits(row).log_softmax(-1) for row in outputs)
                order = -torch.stack([(row.exp() * row).sum(-1) for row in log_p])
                order = order.round(decimals=4)  # nats; equal ones are equal however batched
            order = order.where(documents != PADDING, -torch.inf)
            order = order.argsort(dim=1, descending=True, stable=True)[:, : uniforms.shape[1]]
            anchors = order.sort(1).values
        if self.pause:
            return anchors, torch.full(uniforms.shape, PAUSE, device=tokens.device)
        layout = Layout(documents, anchors, config.samples, config.thoughts)
        thoughts = sample(
            self.model,
            self.start * config.embedding_scale,
            layout,
            cache,
            uniforms,
            config.sample_temperature,
            self.model.config.forbidden,
        )
        return anchors, thoughts

    def score(
        self, tokens: Tensor, documents: Tensor, anchors: Tensor, thoughts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text and every branch in one packed pass.

        A branch is `<start>, z_1..z_n, <end>, x[t+1]..x[t+m-1]`: the true tokens, not the model's.

        Returns:
            base (B, T, D) outputs of the text, branch (B, A, K, n + m + 1, D) outputs of the
            branches.
        """
        (B, A, K, n), T, m = thoughts.shape, tokens.shape[1], self.config.ahead
        layout = Layout(documents, anchors, K, n + m + 1)
        scale, window = self.config.embedding_scale, self.model.config.window
        text = self.model.embed(tokens)  # (B, T, D)
        start, end = (
            (vector * scale).to(text.dtype).expand(B, A, K, 1, -1)
            for vector in (self.start, self.end)
        )
        forced = anchors[:, :, None] + torch.arange(1, m, device=tokens.device)  # (B, A, m - 1)
        forced = tokens.gather(1, forced.clamp(max=T - 1).flatten(1)).view(B, A, 1, m - 1)
        inner = self.model.embed(thoughts.clamp(min=0))
        inner = torch.where((thoughts == PAUSE)[..., None], start, inner)
        branches = torch.cat(
            [
                start,
                inner,
                end,
                self.model.embed(forced.expand(-1, -1, K, -1)),
            ],
            dim=3,
        )
        slots = layout.packed
        if self.attention == "structured":
            attend = Structured.of(layout, window)
        elif self.attention == "flex":
            attend = Flex(block_mask(slots, window))
        else:
            attend = Dense(dense_mask(slots, slots, window))
        x = torch.cat([text, branches.flatten(1, 3)], 1)  # (B, S, D)
        outputs = self.model(x, slots.position, attend)
        return outputs[:, :T], outputs[:, T:].unflatten(1, (A, K, n + m + 1))

    def judge(
        self,
        tokens: Tensor,
        documents: Tensor,
        counted: Tensor | None,
        anchors: Tensor,
        thoughts: Tensor,
        base: Tensor,
        branch: Tensor,
        fixed_weight: float | None = None,
    ) -> Step:
        """Mix, and take the NLL of the true tokens with and without thoughts (see `Step`)."""
        config, head, m = self.config, self.model.head, self.config.ahead
        targets, base_valid = targets_ahead(tokens, documents, every_position(tokens), 1, counted)
        base_valid = base_valid.squeeze(2)
        nll_base = linear_nll(base, head, targets.squeeze(2)).where(base_valid, 0.0)

        targets, valid = targets_ahead(tokens, documents, anchors, m, counted)
        nll_later = nll_base.gather(1, self._later(anchors, base)).view_as(valid)
        mixed = self.mix(anchors, base, branch, fixed_weight)
        targets = targets[:, :, None].expand(mixed.score.shape)
        nll_mix = mixed_nll(mixed, head, targets, config.mix_space)
        nll_mix = nll_mix.where(valid[:, :, None], 0.0)

        log_p = -linear_nll(
            branch[..., : thoughts.shape[3], :],
            head,
            thoughts.clamp(min=0),
            config.policy_temperature,
            self.model.config.forbidden,
        )
        log_p = log_p.where(thoughts != PAUSE, 0.0).sum(-1)  # nobody chose a pause
        reward = rewards(nll_later, nll_mix, valid)
        weight = mixed.weight.detach()
        return Step(nll_base, nll_mix, log_p, reward, weight, base_valid, valid, anchors, thoughts)

    def _later(self, anchors: Tensor, base: Tensor) -> Tensor:
        """(B, A * m) text positions that predict x[t+1] .. x[t+m] (the last one past the end)."""
        later = anchors[:, :, None] + torch.arange(self.config.ahead, device=anchors.device)
        return later.clamp(max=base.shape[1] - 1).flatten(1)

    def predict(
        self, tokens: Tensor, documents: Tensor, anchors: Tensor, thoughts: Tensor, **fixed: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of x[t+1] .. x[t+m] without and with thoughts, for few positions.

        Returns:
            (B, A, K, m, V) without, (B, A, K, m, V) with, and mixing weights (B, A, K, m).
        """
        mixed = self.mix(anchors, *self.score(tokens, documents, anchors, thoughts), **fixed)
        return *mixed_log_p(mixed, self.model.head, self.config.mix_space), mixed.weight

    def mix(
        self, anchors: Tensor, base: Tensor, branch: Tensor, fixed_weight: float | None = None
    ) -> Mixed:
        """Stage 4 without targets; base and branch are outputs as `score` returns them."""
        (B, A, K), m, D = branch.shape[:3], self.config.ahead, base.shape[2]
        wide = torch.promote_types(base.dtype, torch.float32)
        later = self._later(anchors, base)[..., None].expand(-1, -1, D)
        base = base.gather(1, later).view(B, A, 1, m, D).expand(-1, -1, K, -1, -1).to(wide)
        after = branch[..., -m:, :].to(wide)  # (B, A, K, m, D): at <end>, x[t+1], ..
        score = self.mixer(base, after)
        weight = mixing_weight(score, self.config.mix_weight)
        if fixed_weight is not None:
            weight = torch.full_like(weight, fixed_weight)
            score = torch.special.logit(weight)
        return Mixed(base, after, score, weight)


def loss_terms(step: Step, config: ThoughtConfig) -> Terms:
    """The sums of a step's loss terms; divide by the counts of the whole batch (`Terms.means`)."""
    policy = step.nll_base.new_zeros(())
    if config.beta > 0:
        policy = reinforce(step.log_p, step.reward, config.baseline, config.keep_negative)
    return Terms(step.nll_base.sum(), step.nll_mix.sum((0, 1, 2)), policy)


def term_weights(config: Config) -> Terms:
    """What each mean of the terms weighs in the loss; plain training is the base term alone."""
    thought = config.thinking
    if not config.run.thinks:
        return Terms(1.0, 0.0, 0.0)
    return Terms(thought.base_weight, 1 - thought.base_weight, thought.beta)
