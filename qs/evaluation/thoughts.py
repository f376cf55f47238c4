"""What was thought before every token of some text, as records for `qs/evaluation/page.py`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qs.config import PADDING, Config
from qs.data.dataset import TokenDataset
from qs.evaluation.heldout import heldout_text
from qs.evaluation.page import Passage, Thought, Token, page, terminal
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import PAUSE, QuietStar
from qs.quietstar.losses import Step
from qs.quietstar.sampler import step_generator

PAGE, PAGE_ROWS = "thoughts.html", 12  # of a run, and of held-out text on it


class Shown(NamedTuple):
    """Passages to show.

    Attributes:
        passages: in the order of the text: nothing was chosen.
        examples: indices of a few: of the first question of each kind, where they are known, then
            of the second ones, and so on; else of the first passages.
    """

    passages: list[Passage]
    examples: list[int]


@torch.no_grad()
def shown(
    quiet: QuietStar, data: TokenDataset, tokenizer: Tokenizer, config: Config, rows: int
) -> Shown:
    """Think before every token of the first rows of held-out text, K thoughts each.

    Args:
        quiet: the module; K thoughts at every position, judged on m tokens, as trained.
        data: the held-out split.
        tokenizer: that made it.
        config: seq and seed are used.
        rows: to show at most.
    """
    text = heldout_text(data, tokenizer, config.run.seq, rows)
    asked = {(q.row, int(text.documents[q.row, q.position])): q for q in text.questions or ()}
    generator = step_generator(config.run.seed, 0)
    device = quiet.start.device
    found: list[Passage] = []
    kinds: list[str] = []
    for row, (tokens, documents) in enumerate(zip(text.tokens, text.documents, strict=True)):
        with quiet.with_settings(anchors="all", anchor_share=1.0):
            step = quiet(tokens[None].to(device), documents[None].to(device), generator=generator)
        for number in documents[documents != PADDING].unique().tolist():
            question = asked.get((row, number))
            title = f"document {len(found) + 1}"
            if question:
                title += f", {question.kind} of {question.difficulty}: working left out"
            there = (documents == number).nonzero().flatten().tolist()
            found.append(Passage(title, tuple(_tokens(step, tokens, there, tokenizer))))
            kinds.append(question.kind if question else "")
    ranks = [(kinds[:i].count(kind), i) for i, kind in enumerate(kinds) if kind]
    return Shown(found, [i for _, i in sorted(ranks)] or list(range(len(found))))


def _tokens(step: Step, tokens: Tensor, there: list[int], tokenizer: Tokenizer) -> Iterator[Token]:
    """The tokens at some neighbouring positions of a row, with the thoughts before each."""
    names = {tokenizer.bos_id: "", tokenizer.eos_id: "", PAUSE: "…"}

    def text_of(token: int) -> str:
        return names[token] if token in names else tokenizer.piece(token)

    for place, t in enumerate(there):
        text = text_of(int(tokens[t]))
        if place == 0:
            yield Token(text, None, None, ())
            continue
        nll = step.nll_base[0, t - 1].item()
        judged = bool(step.valid[0, t - 1].all())
        thoughts = tuple(
            Thought(
                text="".join(text_of(i) for i in step.thoughts[0, t - 1, k].tolist()),
                reward=step.reward[0, t - 1, k].item() if judged else math.nan,
                weight=step.weight[0, t - 1, k, 0].item(),
            )
            for k in range(step.thoughts.shape[2])
        )
        gain = nll - step.nll_mix[0, t - 1, :, 0].mean().item()
        yield Token(text, gain, nll, thoughts)


def thoughts_shown(found: Shown, count: int, path: Path | None, about: dict[str, str]) -> str:
    """Print-ready text of a few passages with what was thought; all of them go to an HTML page.

    Args:
        found: passages and which of them are examples.
        count: examples to print.
        path: of the page; None: none is written.
        about: what the page says of model and text.
    """
    color = sys.stdout.isatty()
    parts = [terminal(found.passages[i], color) for i in found.examples[:count]]
    if path is not None:
        path.write_text(page("What the model thought", about, found.passages), encoding="utf-8")
        parts.append(f"what it thought, as a page: {path}")
    return "\n\n".join(parts)
