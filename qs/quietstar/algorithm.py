"""Quiet-STaR's algorithm 1, stage by stage. Read this file first.

    1. base    one causal pass over the text
    2. think   after every anchor, K thoughts sampled from the model itself (no gradient)
    3. score   text and all branches in one packed pass; each thought is judged on m true tokens
    4. mix     the prediction after the thought is mixed into the prediction without it
    5. loss    NLL of base and mixed predictions, and REINFORCE on the thought's tokens

Given the thoughts a step is a deterministic function of tokens and parameters, which is what lets
tests compare values and gradients with running every branch alone.

Letters: B rows, T text positions, A anchors (positions that think), K thoughts at each anchor,
n tokens of a thought, m true tokens ahead, D hidden size, V vocabulary.

Source: Quiet-STaR (arXiv:2403.09629), section 4 and algorithm 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from qs.config import ThoughtConfig
from qs.model.exact import Exact
from qs.model.mistral import Mistral
from qs.quietstar.anchors import choose_anchors, draw, uncertainty
from qs.quietstar.attention import packed_attention
from qs.quietstar.checks import check_batch, check_thoughts, head_of, result_of
from qs.quietstar.ends import PAUSE, after_end, close_up, lengths, log_p_of, pauses
from qs.quietstar.losses import linear_nll, rewards
from qs.quietstar.masks import Layout, every_position, one_document
from qs.quietstar.mixer import Mixed, foretold, mixed_log_p, mixed_nll
from qs.quietstar.parts import Parts
from qs.quietstar.sampler import prefill, sample
from qs.quietstar.terms import Step, Targets, Terms, loss_terms, targets_of, term_weights


class QuietStar(nn.Module):
    """A Mistral that thinks: the model, learned vectors of start and end, and the mixing head.

    Args:
        model: the language model.
        config: what a thought is and what the terms of the loss weigh.
        attention: realisation of the visibility rule in the packed pass: "structured", "flex" (fast
            on CUDA under torch.compile) or "dense" (the oracle).
        pause: thoughts are n pauses (the start vector again) instead of sampled tokens.
        parts: reward, baseline, mixing head and visibility of one's own; attributes afterwards.
    """

    def __init__(
        self,
        model: Mistral,
        config: ThoughtConfig,
        attention: str = "structured",
        pause: bool = False,
        parts: Parts = Parts(),  # noqa: B008
    ):
        super().__init__()
        self.model, self.config = model, config
        self.attention, self.pause = attention, pause
        D, drawn = model.config.dim, config.end == "drawn"
        self.start, self.end = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.end_output = nn.Parameter(torch.zeros(D)) if drawn else None
        self.mixer = head_of(parts.mixer, D)
        self.reward, self.baseline, self.visibility = parts.reward, parts.baseline, parts.visibility
        self.seen: set[str] = set()  # parts whose results were finite
        self.masters: dict[str, Tensor | Exact] = {}  # float32 values of parameters of fewer bits

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        counted: Tensor | None = None,
        anchors: Tensor | None = None,
        thoughts: Tensor | None = None,
        generator: torch.Generator | None = None,
        fixed_weight: float | None = None,
        targets: Targets | None = None,
    ) -> Step:
        """One step: base, think, score, mix, and the NLL of the true tokens.

        Args:
            tokens: (B, T) ids.
            documents: (B, T) document of each position, -1 for padding; None: one document a row.
            counted: (B, T) True where a token counts as a target; None: everywhere.
            anchors: (B, A) positions that think; None: as `config.anchors` says.
            thoughts: (B, A, K, n) tokens (or PAUSE, or ENDED after a thought's own end) to use
                instead of sampling; needs `anchors` unless all positions think.
            generator: on the CPU; source of sampled thoughts and random anchors.
            fixed_weight: mixing weight to use instead of the head's (1: always the thought).
            targets: what `terms.targets_of` says of these, if it is known already.

        Raises:
            ValueError: a batch or thoughts that cannot be (`checks.check_batch`, `check_thoughts`).
        """
        check_batch(self.model.config.vocab_size, tokens, documents, counted, anchors, thoughts)
        documents = one_document(tokens) if documents is None else documents
        if thoughts is None:
            anchors, thoughts = self.think(tokens, documents, anchors, generator)
        elif anchors is None:
            anchors = every_position(tokens)
        targets = targets or targets_of(tokens, documents, anchors, self.config.ahead, counted)
        base, branch = self.score(tokens, documents, anchors, thoughts)
        mixed = self.mix(anchors, base, self.after(branch, thoughts), fixed_weight)
        return self.judge(targets, anchors, thoughts, base, branch, mixed)

    # Stage 1

    def base(self, tokens: Tensor, documents: Tensor) -> tuple[Tensor, list]:
        """Read the text once: outputs (B, T, D), and the cache that thoughts are sampled over."""
        return prefill(self.model, tokens, documents, self.visibility)

    # Stage 2

    @torch.no_grad()
    def think(
        self,
        tokens: Tensor,
        documents: Tensor,
        anchors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read the text, choose who thinks, sample their thoughts.

        Args:
            tokens, documents: (B, T).
            anchors: (B, A) positions that think; None: as `config.anchors` says.
            generator: on the CPU.

        Returns:
            anchors (B, A) and thoughts (B, A, K, n).

        Raises:
            ValueError: as `forward`.
        """
        check_batch(self.model.config.vocab_size, tokens, documents, anchors=anchors)
        config, outputs, cache = self.config, None, None
        numbers = draw(config, *tokens.shape, generator, anchors)
        unsure = anchors is None and config.anchors == "uncertain"
        if unsure or not self.pause:
            outputs, cache = self.base(tokens, documents)
        if anchors is None:
            uncertainties = uncertainty(self.model, outputs) if unsure else None
            anchors = choose_anchors(config.anchors, documents, numbers, uncertainties)
        temperature = config.sample_temperature
        return anchors, self.sample(documents, anchors, cache, numbers.uniforms, temperature)

    def sample(
        self,
        documents: Tensor,
        anchors: Tensor,
        cache: list | None,
        uniforms: Tensor,
        temperature: float,
    ) -> Tensor:
        """Thoughts (B, A, K, n) after (B, A) anchors, or pauses.

        Args:
            documents, anchors: (B, T) and (B, A).
            cache: of the text, as `base` returns it; pauses need none.
            uniforms: (B, A, K, n) numbers in [0, 1) to draw by, float64.
            temperature: 0 is greedy.
        """
        if self.pause:
            return pauses(uniforms.shape, documents.device)
        layout = Layout(documents, anchors, *uniforms.shape[2:], self.visibility)
        never, start = self.model.config.forbidden, self.vectors[0]
        return sample(self.model, start, layout, cache, uniforms, temperature, never, self.end_row)

    # Stage 3

    def score(
        self, tokens: Tensor, documents: Tensor, anchors: Tensor, thoughts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text and every branch in one packed pass, with gradient.

        A branch is `<start>, z_1..z_n, <end>, x[t+1]..x[t+m-1]`: the true tokens, not the model's.

        Returns:
            base (B, T, D) outputs of the text, branch (B, A, K, n + m + 1, D) outputs of the
            branches: the one at `<end>` predicts x[t+1], the one at x[t+i] predicts x[t+i+1].
        """
        (A, K, n), T, m = thoughts.shape[1:], tokens.shape[1], self.config.ahead
        layout = Layout(documents, anchors, K, n + m + 1, self.visibility)
        text = self.model.embed(tokens)  # (B, T, D)
        branches = self.embed_branches(tokens, anchors, thoughts)
        x = torch.cat([text, branches.flatten(1, 3)], 1)  # (B, S, D)
        shape, eager = self.model.config, self.model.eager(x)
        attend = packed_attention(self.attention, layout, shape.window, shape.shared, eager)
        outputs = self.model(x, layout.packed.position, attend)  # (B, S, D)
        return outputs[:, :T], outputs[:, T:].unflatten(1, (A, K, n + m + 1))

    def embed_branches(self, tokens: Tensor, anchors: Tensor, thoughts: Tensor) -> Tensor:
        """(B, A, K, n + m + 1, D) embeddings of the branches; arguments as of `score`."""
        (B, A, K), T, m = thoughts.shape[:3], tokens.shape[1], self.config.ahead
        check_thoughts(thoughts, self.model.config.vocab_size, self.config.end)
        inner = self.model.embed(thoughts.clamp(min=0))  # (B, A, K, n, D)
        start, end = (v.to(inner.dtype).expand(B, A, K, 1, -1) for v in self.vectors)
        inner = torch.where((thoughts == PAUSE)[..., None], start, inner)
        ahead = anchors[:, :, None] + torch.arange(1, m, device=tokens.device)  # (B, A, m - 1)
        # past the end of the row: any token, since no target there is valid
        forced = tokens.gather(1, ahead.clamp(max=T - 1).flatten(1)).view(B, A, 1, m - 1)
        forced = self.model.embed(forced.expand(-1, -1, K, -1))  # (B, A, K, m - 1, D)
        slots = torch.cat([start, inner, end, forced], 3)
        return slots if self.end_row is None else close_up(slots, thoughts)

    def after(self, branch: Tensor, thoughts: Tensor) -> Tensor:
        """(B, A, K, m, D) outputs of the branches that predict x[t+1] .. x[t+m]."""
        m = self.config.ahead
        return branch[..., -m:, :] if self.end_row is None else after_end(branch, thoughts, m)

    # Stage 4

    def mix(
        self, anchors: Tensor, base: Tensor, after: Tensor, fixed_weight: float | None = None
    ) -> Mixed:
        """How the two predictions of each true token are mixed.

        Args:
            anchors: (B, A).
            base: outputs as `score` returns them.
            after: (B, A, K, m, D) as `after` returns them.
            fixed_weight: mixing weight to use instead of the head's.
        """
        (B, A, K), m, D = after.shape[:3], self.config.ahead, base.shape[2]
        wide = torch.promote_types(base.dtype, torch.float32)
        later = self._later(anchors, base.shape[1])[..., None].expand(-1, -1, D)  # (B, A m, D)
        # the base output for a later token is that of its true position: every thought shares it
        base = base.gather(1, later).view(B, A, 1, m, D).expand(-1, -1, K, -1, -1).to(wide)
        after = after.to(wide)
        score = result_of("mixer", self.mixer, base, after, seen=self.seen)  # (B, A, K, m)
        return Mixed.by(base, after, score, self.config, fixed_weight)

    def _later(self, anchors: Tensor, T: int) -> Tensor:
        """(B, A * m) text positions that predict x[t+1] .. x[t+m] (the last one past the end)."""
        later = anchors[:, :, None] + torch.arange(self.config.ahead, device=anchors.device)
        return later.clamp(max=T - 1).flatten(1)

    # Stage 5

    def judge(
        self,
        targets: Targets,
        anchors: Tensor,
        thoughts: Tensor,
        base: Tensor,
        branch: Tensor,
        mixed: Mixed,
    ) -> Step:
        """NLL of the true tokens with and without thoughts, and what each thought earned."""
        head, n = self.model.head, thoughts.shape[3]
        nll_base = linear_nll(base, head, targets.next)  # (B, T)
        nll_base = nll_base.where(targets.next_valid, 0.0)
        later = self._later(anchors, base.shape[1])
        reference = nll_base if targets.reference is None else targets.reference
        nll_later = reference.gather(1, later).view_as(targets.valid)  # (B, A, m)
        nll_later = nll_later.where(targets.valid, 0.0)

        true = targets.ahead[:, :, None].expand(mixed.score.shape)  # (B, A, K, m)
        nll_mix = mixed_nll(mixed, head, true, self.config.mix_space)
        nll_mix = nll_mix.where(targets.valid[:, :, None], 0.0)

        # the output before a token of the thought is what that token was drawn from
        drawn_from = head if self.end_row is None else torch.cat([head, self.end_row[None]])
        temperature, never = self.config.policy_temperature, self.model.config.forbidden
        log_p = log_p_of(thoughts, branch[..., :n, :], drawn_from, temperature, never)
        kind, space = self.config.reward, self.config.mix_space
        right = foretold(mixed, head, true, space) if kind == "exact" else None
        own = self.reward and partial(result_of, "reward", self.reward, seen=self.seen)
        earned = own or partial(rewards, kind=kind, right=right)
        reward = earned(nll_later, nll_mix, targets.valid)
        cost = self.config.thought_cost * lengths(thoughts).to(reward.dtype)  # (B, A, K)
        return Step(
            nll_base=nll_base,
            nll_mix=nll_mix,
            log_p=log_p,
            reward=(reward.detach() - cost).where(targets.valid.all(-1)[:, :, None], 0.0),
            weight=mixed.weight.detach(),
            base_valid=targets.next_valid,
            valid=targets.valid,
            anchors=anchors,
            thoughts=thoughts,
            outputs=base.detach(),
        )

    def means(self, step: Step, counts: Terms | None = None) -> Terms:
        """The terms of the loss of some rows before they are weighed, () each.

        Args:
            step: of the rows.
            counts: what each term is divided by, over the whole batch (`terms.count_terms`); None:
                these rows are all of it.
        """
        own = self.baseline and partial(result_of, "baseline", self.baseline, seen=self.seen)
        return loss_terms(step, self.config, own).means(counts or step.counts)

    def loss(self, means: Terms) -> Tensor:
        """What is minimised: () in nats."""
        base, talk, policy = self.weighted(means)
        return base + talk + policy

    def weighted(self, means: Terms) -> Terms:
        """Each term as it stands in the loss."""
        return means.weighted(term_weights(self.config))

    # What the stages share

    @property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """(D,) embeddings of `<start>` and `<end>`, which are stored divided by their scale."""
        scale = self.config.embedding_scale
        return self.start * scale, self.end * scale

    @property
    def end_row(self) -> Tensor | None:
        """(D,) output vector of `<end>`, beside the head's; None where thoughts are n tokens."""
        if self.config.end == "fixed":
            return None
        return self.end_output.to(self.model.head.dtype) * self.config.embedding_scale

    @contextlib.contextmanager
    def with_settings(self, **changes) -> Iterator[None]:
        """Think under other settings for a while (another length, temperature, ...)."""
        before = self.config
        self.config = dataclasses.replace(before, **changes)
        try:
            yield
        finally:
            self.config = before

    def predict(
        self, tokens: Tensor, documents: Tensor, anchors: Tensor, thoughts: Tensor, **fixed: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of x[t+1] .. x[t+m] without and with thoughts, for few positions.

        Returns:
            (B, A, K, m, V) without, (B, A, K, m, V) with, and mixing weights (B, A, K, m).
        """
        base, branch = self.score(tokens, documents, anchors, thoughts)
        mixed = self.mix(anchors, base, self.after(branch, thoughts), **fixed)
        return *mixed_log_p(mixed, self.model.head, self.config.mix_space), mixed.weight
