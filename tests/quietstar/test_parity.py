"""parity: a narrow model of two layers learns it after pauses.

A pause sees the whole text and has a gated layer of its own, so that n pauses make a model n times
as wide (not deeper). Parity is that of how many of some bits are 1: one head averages the bits, and
what has to be wide is the function of that average, which changes its mind at every further bit.

Larger sizes, with and without pauses, are in docs/results/ladder.md.

Source: Pause Tokens Strictly Increase the Expressivity of Constant-Depth Transformers
(arXiv:2505.21024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import pauses

BEGIN, ASK = 5, 4  # tokens; bits and answers are 0 and 1
ROWS, LR, CHANCE = 32, 4e-3, 0.693


def parity_text(bits: int, numbers: torch.Generator) -> Tensor:
    """(ROWS, bits + 3): a mark, bits, a question mark, whether their number is odd."""
    drawn = torch.randint(2, (ROWS, bits), generator=numbers)
    begin, ask = (torch.full((ROWS, 1), token) for token in (BEGIN, ASK))
    return torch.cat([begin, drawn, ask, drawn.sum(1, keepdim=True) % 2], 1)


def learn_parity(n: int | None, most: int, steps: int, width: int) -> dict[int, float]:
    """NLL of answers by number of bits over the last tenth of training, in nats.

    Args:
        n: pauses before the answer; None: plain training.
        most: bits; each step has 1 to as many of them.
        steps: of training.
        width: units of the gated layers.
    """
    torch.manual_seed(0)
    shape = ModelConfig(
        vocab_size=8, dim=16, layers=2, heads=2, kv_heads=2, head_dim=8, hidden_dim=width
    )
    config = ThoughtConfig(
        thoughts=n or 0, ahead=1, samples=1, beta=0.0, mix_weight="one", embedding_scale=1.0
    )
    model = Mistral(shape)
    for p in model.parameters():
        if p.ndim < 2:
            torch.nn.init.ones_(p)
        else:
            torch.nn.init.normal_(p, 0, 0.02 if len(p) == 8 else p.shape[1] ** -0.5)
    quiet = QuietStar(model, config, pause=True)
    for vector in (quiet.start, quiet.end):
        torch.nn.init.normal_(vector, 0, 0.02)
    optimizer = torch.optim.AdamW(quiet.parameters(), LR, (0.9, 0.98), weight_decay=0.01)
    numbers, losses = torch.Generator().manual_seed(0), {}
    for step in range(steps):
        bits = int(torch.randint(1, most + 1, (), generator=numbers))
        tokens = parity_text(bits, numbers)
        last = torch.full((ROWS, 1), bits + 1)
        anchors = last if n else last[:, :0]
        found = quiet(tokens, anchors=anchors, thoughts=pauses((*anchors.shape, 1, n or 0), "cpu"))
        loss = (found.nll_mix if n else found.nll_base[:, bits + 1]).mean()
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(quiet.parameters(), 1.0)
        optimizer.step()
        if step >= 0.9 * steps:
            losses.setdefault(bits, []).append(loss.item())
    return {bits: sum(each) / len(each) for bits, each in losses.items()}


def test_pauses_learn_the_parity_of_two_bits():
    found = learn_parity(3, most=2, steps=400, width=2)
    assert max(found.values()) < 0.2 * CHANCE
