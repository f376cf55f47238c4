"""The sampler: after every anchor, K hidden thoughts of n tokens each or at most, in parallel.

The text is read once and its keys and values are kept. Then n passes follow, each of one slot for
every branch: `<start>`, z_1, .., z_{n-1} go in, and z_1, .., z_n are drawn from what comes out. A
thought sees the text up to its anchor and itself. Nothing here has a gradient.

Randomness is one uniform number for each token of each thought, drawn at once from the caller's
generator and turned into a token by inverting the cumulative distribution. So a thought depends on
its own numbers only, not on what is sampled beside it.

Source: Quiet-STaR (arXiv:2403.09629), section 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set

import numpy as np
import torch
from torch import Tensor

from qs.model.mistral import Mistral, at_least_float32
from qs.quietstar.attention import CachedBranches, CachedText, new_cache
from qs.quietstar.ends import ENDED
from qs.quietstar.losses import LOGITS_AT_ONCE
from qs.quietstar.masks import Layout, Visibility, dense_mask, text_slots


def prefill(
    model: Mistral, tokens: Tensor, documents: Tensor, visibility: Visibility | None = None
) -> tuple[Tensor, list]:
    """Read the text once.

    Args:
        model: the language model.
        tokens, documents: (B, T).
        visibility: hides more than the rule does; None: nothing.

    Returns:
        outputs (B, T, D) and the cache: keys and values (B, T, G, d) of each layer.
    """
    config, text = model.config, text_slots(documents)
    x = model.embed(tokens)
    cache = new_cache(config.layers, tuple(tokens.shape), config.kv_heads, config.head_dim, x)
    attend = CachedText(dense_mask(text, text, config.window, visibility))
    return model(x, text.position, attend, cache), cache


def branch_cache(model: Mistral, cache: list, branches: tuple[int, int, int]) -> list:
    """A text's cache and room for (A, K, L) slots of branches, as `CachedBranches` takes them."""
    (A, K, L), shape, like = branches, model.config, cache[0][0]
    rows = (len(like), shape.kv_heads, A, K)
    own = new_cache(shape.layers, rows, L, shape.head_dim, like)  # (B, G, A, K, L, d)
    return [(*text, *mine) for text, mine in zip(cache, own, strict=True)]


@torch.no_grad()
def sample(
    model: Mistral,
    start: Tensor,
    layout: Layout,
    cache: list,
    uniforms: Tensor,
    temperature: float = 1.0,
    forbidden: Sequence[int] = (),
    end: Tensor | None = None,
) -> Tensor:
    """Sample every thought of every anchor.

    Args:
        model: the language model.
        start: (D,) embedding of `<start>`.
        layout: documents and anchors; its branch length is not used.
        cache: of the text, as `prefill` returns it.
        uniforms: (B, A, K, n) numbers in [0, 1), float64.
        temperature: 0 is greedy.
        forbidden: ids that a thought never holds.
        end: (D,) output vector of `<end>`, which a thought may draw; None: it has n tokens.

    Returns:
        (B, A, K, n) token ids, and ENDED from where a thought has drawn its end.
    """
    B, A, K, n = uniforms.shape
    if n == 0:
        return torch.empty((B, A, K, 0), dtype=torch.int64, device=start.device)
    shape, layout = model.config, dataclasses.replace(layout, samples=K, length=n)
    positions = layout.branches.position.view(B, A * K, n)
    both = branch_cache(model, cache, (A, K, n))
    uniforms, V = uniforms.to(start.device), shape.vocab_size
    rows = max(1, LOGITS_AT_ONCE // V)
    ids = allowed_ids(V if end is None else V + 1, set(forbidden), start.device)
    ended = torch.zeros((B, A, K), dtype=torch.bool, device=start.device)
    x = start.to(model.compute_dtype).expand(B, A * K, -1).contiguous()
    drawn, steps = [], CachedBranches.steps(layout, shape.window, shape.shared, model.eager(x))
    for j, attend in enumerate(steps):
        outputs = model(x, positions[..., j], attend, both).flatten(0, 1)  # (B A K, D)
        numbers = uniforms[..., j].flatten()
        pieces = zip(outputs.split(rows), numbers.split(rows), strict=True)
        pieces = [choose(thought_logits(model, o, end), u, ids, temperature) for o, u in pieces]
        tokens = torch.cat(pieces).view(B, A, K)
        if end is not None:
            ended |= tokens == V
            tokens = tokens.where(~ended, ENDED)
        drawn.append(tokens)
        x = model.embed(tokens.clamp(min=0)).view(B, A * K, -1)
    return torch.stack(drawn, -1)


def thought_logits(model: Mistral, outputs: Tensor, end: Tensor | None) -> Tensor:
    """(N, D) outputs -> (N, V) logits of what a thought goes on with; column V: of `<end>` (D,)."""
    logits = model.logits(outputs)
    if end is None:
        return logits
    ending = at_least_float32(outputs) * end.to(logits.dtype)  # (N, D)
    return torch.cat([logits, ending.sum(1, keepdim=True)], 1)


def choose(
    logits: Tensor, uniform: Tensor, ids: Tensor, temperature: float, top_p: float = 1.0
) -> Tensor:
    """One token a row, of thoughts and of text alike, without a wait for the device.

    Args:
        logits: (N, V), or log-probabilities.
        uniform: (N,) numbers in [0, 1), float64.
        ids: (W,) those that may be drawn, rising.
        temperature: 0 takes the likeliest token, whatever `uniform` is.
        top_p: draw from the fewest likeliest tokens that together have at least this probability
            at the temperature.

    Returns:
        (N,) ids.
    """
    logits = logits[:, ids]
    if temperature == 0:
        return ids[logits.argmax(1)]
    p = (logits if temperature == 1 else logits / temperature).softmax(1)
    if top_p < 1:
        falling, order = p.sort(dim=1, descending=True, stable=True)
        beyond = falling.cumsum(1) - falling >= top_p
        p = p.masked_fill(beyond.scatter(1, order, beyond), 0.0)
    total = p.cumsum(1)
    mass = total[:, -1:]
    below = torch.nextafter(mass, torch.zeros_like(mass))  # so that some entry is always above
    point = (uniform[:, None].to(mass.dtype) * mass).minimum(below)
    found = torch.searchsorted(total, point, right=True).squeeze(1)
    return ids[found.clamp(max=len(ids) - 1)]  # past the end only if the logits are not finite


def allowed_ids(vocabulary: int, never: Set[int | None], device: torch.device) -> Tensor:
    """Rising ids below `vocabulary` without some."""
    ids = np.delete(np.arange(vocabulary), [i for i in never if i is not None])
    return torch.from_numpy(ids).to(device)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; depends on seed and step alone, so resuming needs no state."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
