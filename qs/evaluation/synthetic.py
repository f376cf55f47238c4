"""Text whose answers are known: what thinking does at the answers, and at all other tokens.

For folders that hold the recipe of their text (`qs/data/synthetic.py`). A question is a document
whose working is left out: its answer is one token that can be known only by reasoning. Everything
else, written documents and their answers included, counts among the other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.config import ONE_THOUGHT, PADDING
from qs.data.dataset import TokenDataset
from qs.data.synthetic import OPEN, Document, read_recipe
from qs.evaluation.tokens import text_sums
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import targets_ahead


class Question(NamedTuple):
    """An answer in a row of text, and what is known about it.

    Attributes:
        row, position: t; x[t+1] is the answer.
        kind, difficulty: see `synthetic.Document`.
        choices: (C,) ids of all possible answers.
        gold: index of the answer among them.
        working: ids of the steps that reach the answer.
    """

    row: int
    position: int
    kind: str
    difficulty: int
    choices: tuple[int, ...]
    gold: int
    working: tuple[int, ...]


@dataclass(frozen=True)
class Marked:
    """Rows of whole documents and the questions in them.

    Attributes:
        tokens, documents: (R, T), as `dataset.Batch` holds them.
        questions: in order of rows.
    """

    tokens: Tensor
    documents: Tensor
    questions: list[Question]


def marked(folder: Path, tokenizer: Tokenizer, seq: int, rows: int | None = None) -> Marked | None:
    """The held-out text of a prepared folder, with its questions.

    Documents are never cut: a row holds as many as fit into `seq` tokens, and rows are as long as
    the longest document if that is longer.

    Args:
        folder: prepared data, perhaps with the recipe of its text.
        tokenizer: that made it.
        seq: T.
        rows: R at most.

    Returns:
        None if there is no recipe.

    Raises:
        ValueError: the recipe does not give the text that was prepared, or the tokenizer does not
            spell answers and the mark before a working in one token each.
    """
    documents = read_recipe(folder, "heldout")
    if documents is None:
        return None
    encoded = [tokenizer.encode(d.text, bos=True, eos=True) for d in documents]
    stored = TokenDataset(folder, "heldout")
    flat = np.concatenate(encoded)
    if len(flat) != stored.tokens or (flat != stored.read(0, stored.tokens)[0]).any():
        raise ValueError(
            f"{folder}: expected held-out text drawn from its world.json, found other text; "
            "prepare what python -m qs.data synthetic wrote and copy its world.json beside it"
        )
    mark = _id_of(tokenizer, OPEN)
    if tokenizer.piece(mark) != OPEN:
        raise ValueError(
            f"{folder}: expected {OPEN!r} to be a token of its own, found "
            f"{tokenizer.piece(mark)!r}; train the tokenizer with --symbol {OPEN}"
        )
    seq = max(seq, *map(len, encoded))
    packed: list[list[int]] = [[]]
    numbers: list[list[int]] = [[]]
    questions = []
    for document, ids in zip(documents, encoded, strict=True):
        if len(packed[-1]) + len(ids) > seq:
            if len(packed) == rows:
                break
            packed.append([])
            numbers.append([])
        packed[-1] += ids
        numbers[-1] += [max(numbers[-1], default=-1) + 1] * len(ids)
        if document.style == "none":
            written = tokenizer.encode(f"{document.question}\n{OPEN}{document.working}")
            working = written[written.index(mark) + 1 :][: document.needed]
            questions.append(
                Question(
                    row=len(packed) - 1,
                    position=len(packed[-1]) - 3,  # before the answer and the end of the text
                    kind=document.kind,
                    difficulty=document.difficulty,
                    choices=_choices(folder, tokenizer, document, ids[-2]),
                    gold=document.choices.index(document.answer),
                    working=tuple(working),
                )
            )
    tokens = torch.zeros(len(packed), seq, dtype=torch.int64)
    inside = torch.full((len(packed), seq), PADDING)
    for row, (ids, number) in enumerate(zip(packed, numbers, strict=True)):
        tokens[row, : len(ids)] = torch.tensor(ids)
        inside[row, : len(ids)] = torch.tensor(number)
    return Marked(tokens, inside, questions)


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    """The token that ends a line which holds nothing else."""
    return tokenizer.encode(f"\n{text}")[-1]


def _choices(
    folder: Path, tokenizer: Tokenizer, document: Document, answer: int
) -> tuple[int, ...]:
    """Ids of the possible answers of a document that ends in the token `answer`."""
    found = tuple(_id_of(tokenizer, choice) for choice in document.choices)
    gold = found[document.choices.index(document.answer)]
    if len(set(found)) < len(found) or gold != answer:
        raise ValueError(
            f"{folder}: expected each possible answer to be one token, and {document.answer!r} the "
            f"last one of {document.text!r}; found {[tokenizer.piece(i) for i in found]} and "
            f"{tokenizer.piece(answer)!r}; train the tokenizer on text of "
            "python -m qs.data synthetic"
        )
    return found


def rewarded(text: Marked, ahead: int) -> float:
    """Share of the questions after which `ahead` targets follow in the document.

    A position with fewer earns no reward (`losses.rewards`): REINFORCE never sees its thought.
    """
    at = [q.row for q in text.questions], [q.position for q in text.questions]
    anchors = torch.tensor(at[1])[:, None]
    _, valid = targets_ahead(text.tokens[at[0]], text.documents[at[0]], anchors, ahead)
    return float(valid.all(-1).double().mean())


class Measured(NamedTuple):
    """What was measured, a line for each question and for each row.

    Attributes:
        gold: (Q, 2) probability of the answer among its choices, without and with a thought.
        nll: (Q, 2) NLL of the answer in nats.
        useful: (Q,) whether the thought begins with the steps that reach the answer.
        weight: (Q,) mixing weight.
        entropy: (Q,) of the prediction without a thought, in nats.
        other: (R, 4) sums over tokens that answer no question, see `tasks.text_sums`.
        text: (R, 4) sums over all tokens.
    """

    gold: np.ndarray
    nll: np.ndarray
    useful: np.ndarray
    weight: np.ndarray
    entropy: np.ndarray
    other: np.ndarray
    text: np.ndarray


Change = Callable[[QuietStar, Tensor, Tensor, torch.Generator], Tensor]


@torch.no_grad()
def measure(
    quiet: QuietStar,
    text: Marked,
    batches: Iterable[slice],
    generator: torch.Generator,
    change: Change | None = None,
    fixed_weight: float | None = None,
    think: bool = True,
) -> Measured:
    """Think before every token, one thought each, and measure answers and all other tokens.

    Args:
        quiet: the module.
        text: rows and questions.
        batches: rows to read at a time, which together are all of them.
        generator: source of the thoughts, on the CPU.
        change: given module, documents (B, T), thoughts (B, T, 1, n) and generator: other thoughts
            of any length to use instead.
        fixed_weight: mixing weight to use instead of the head's.
        think: if False, everything is measured without thoughts, twice.
    """
    device = quiet.start.device
    if not think:
        fixed_weight = 0.0
    lines: list[list[float]] = []
    sums: list[list[Tensor]] = []
    for rows in batches:
        tokens, documents = text.tokens[rows].to(device), text.documents[rows].to(device)
        asked = [q for q in text.questions if rows.start <= q.row < rows.start + len(tokens)]
        with quiet.with_settings(**ONE_THOUGHT):
            if think:
                anchors, thoughts = quiet.think(tokens, documents, generator=generator)
            else:
                anchors, thoughts = tokens[:, :0], tokens[:, :0, None, None]
            if change:
                thoughts = change(quiet, documents, thoughts, generator)
            step = quiet(tokens, documents, None, anchors, thoughts, fixed_weight=fixed_weight)
            at = [q.row - rows.start for q in asked], [q.position for q in asked]
            other = step.base_valid.clone()
            other[at] = False
            chosen = thoughts[at] if think else thoughts.new_zeros(len(asked), 1, 0)
            lines += _lines(quiet, tokens[at[0]], documents[at[0]], chosen, asked, fixed_weight)
        sums.append([text_sums(step, mask).cpu() for mask in (other, step.base_valid)])
    table = np.array(lines, float).reshape(len(lines), 7)
    other, everything = (torch.cat(x).numpy() for x in zip(*sums, strict=True))
    return Measured(
        gold=table[:, :2],
        nll=table[:, 2:4],
        useful=table[:, 4] > 0,
        weight=table[:, 5],
        entropy=table[:, 6],
        other=other,
        text=everything,
    )


def gold_above(found: Measured, above: float) -> float:
    """Mean gold answer probability if only predictions of more entropy (nats) are thought about."""
    return float(np.where(found.entropy > above, found.gold[:, 1], found.gold[:, 0]).mean())


def _lines(
    quiet: QuietStar,
    tokens: Tensor,
    documents: Tensor,
    thoughts: Tensor,
    asked: list[Question],
    fixed_weight: float | None,
) -> list[list[float]]:
    """A line of `measure` for each of Q questions: (Q, T) rows, (Q, 1, n) thoughts."""
    if not asked:
        return []
    anchors = torch.tensor([[q.position] for q in asked], device=tokens.device)
    base, mix, weight = (
        x.flatten(1).cpu()
        for x in quiet.predict(
            tokens, documents, anchors, thoughts[:, None], fixed_weight=fixed_weight
        )
    )
    lines = []
    for row, (q, thought) in enumerate(zip(asked, thoughts[:, 0].tolist(), strict=True)):
        chosen = torch.stack([base[row], mix[row]])[:, list(q.choices)].double()
        gold, nll = chosen.softmax(1)[:, q.gold], -chosen[:, q.gold]
        useful = tuple(thought[: len(q.working)]) == q.working
        entropy = -(base[row].exp() * base[row]).sum().item()
        lines.append([*gold.tolist(), *nll.tolist(), useful, weight[row].item(), entropy])
    return lines
