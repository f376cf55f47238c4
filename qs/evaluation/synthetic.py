"""Text whose answers are known: what thinking does at the answers, and at all other tokens.

For folders that hold the recipe of their text (`qs/data/synthetic.py`). A question is a document
whose working is left out: its answer is one token that can be known only by reasoning. Everything
else, written documents and their answers included, counts among the other tokens.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qs.config import PADDING, RunConfig
from qs.data.dataset import TokenDataset
from qs.data.synthetic import OPEN, Document, read_recipe
from qs.evaluation.tokens import Question, TextRows, windows
from qs.model.tokenizer import Tokenizer
from qs.presets import ONE_THOUGHT
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import lengths
from qs.quietstar.load import eager
from qs.quietstar.losses import entropy
from qs.quietstar.terms import targets_ahead


def heldout_text(data: TokenDataset, tokenizer: Tokenizer, seq: int, rows: int) -> TextRows:
    """Held-out text, with its questions if the folder has the recipe of its text; else `windows`.

    With questions, documents are never cut: each of at most `rows` rows (R) holds as many as fit
    into `seq` tokens (T), and rows are as long as the longest document if that is longer.

    Raises:
        ValueError: the recipe does not give the text that was prepared, the tokenizer does not
            spell answers and the mark before a working in one token each, or there is no text.
    """
    folder, documents = data.folder, read_recipe(data.folder, "heldout")
    if documents is None:
        return windows(data, seq, rows)
    encoded = [tokenizer.encode(d.text, bos=True, eos=True) for d in documents]
    flat = np.concatenate(encoded)
    if len(flat) != data.tokens or (flat != data.read(0, data.tokens)[0]).any():
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
    seq, most = max(seq, *map(len, encoded)), min(rows, len(encoded))
    tokens = torch.zeros(most, seq, dtype=torch.int64)
    inside = torch.full((most, seq), PADDING)
    questions, row, used = [], 0, 0
    for number, (document, ids) in enumerate(zip(documents, encoded, strict=True)):
        if used + len(ids) > seq:
            row, used = row + 1, 0
            if row == rows:
                break
        place = slice(used, used + len(ids))
        tokens[row, place], inside[row, place] = torch.tensor(ids), number
        used = place.stop
        if document.style == "none":
            written = tokenizer.encode(f"{document.question}\n{OPEN}{document.working}")
            working = written[written.index(mark) + 1 :][: document.needed]
            question = Question(
                row=row,
                position=used - 3,  # before the answer and the end of the text
                kind=document.kind,
                difficulty=document.difficulty,
                choices=_choices(folder, tokenizer, document, ids[-2]),
                gold=document.choices.index(document.answer),
                working=tuple(working),
            )
            questions.append(question)
    return TextRows(tokens[: row + 1], inside[: row + 1], questions)


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    """The token that ends a line which holds nothing else."""
    return tokenizer.encode(f"\n{text}")[-1]


def _choices(
    folder: Path, tokenizer: Tokenizer, document: Document, answer: int
) -> tuple[int, ...]:
    """Ids of the possible answers of a document that ends in the token `answer`."""
    choices = tuple(_id_of(tokenizer, choice) for choice in document.choices)
    gold = choices[document.choices.index(document.answer)]
    if len(set(choices)) < len(choices) or gold != answer:
        raise ValueError(
            f"{folder}: expected each possible answer to be one token, and {document.answer!r} the "
            f"last one of {document.text!r}; found {[tokenizer.piece(i) for i in choices]} and "
            f"{tokenizer.piece(answer)!r}; train the tokenizer on text of "
            "python -m qs.data synthetic"
        )
    return choices


def rewarded(text: TextRows, ahead: int) -> float:
    """Share of the questions after which `ahead` targets follow in the document.

    A position with fewer earns no reward (`losses.rewards`): REINFORCE never sees its thought.
    """
    rows = [q.row for q in text.questions]
    anchors = torch.tensor([[q.position] for q in text.questions])
    _, valid = targets_ahead(text.tokens[rows], text.documents[rows], anchors, ahead)
    return float(valid.all(-1).double().mean())


class AnswerTable(NamedTuple):
    """What was measured at the answers, in the order of the questions; (Q,) each, NLL in nats."""

    gold_base: np.ndarray  # probability of the answer among its choices, without a thought
    gold_mix: np.ndarray  # with one
    nll_base: np.ndarray  # NLL of the answer among all tokens, without a thought
    nll_mix: np.ndarray  # with one
    useful: np.ndarray  # 1 where the thought begins with the steps that reach the answer, else 0
    weight: np.ndarray  # mixing weight
    entropy: np.ndarray  # of the prediction without a thought
    length: np.ndarray  # tokens of the thought

    def gold_above(self, threshold: float) -> float:
        """Mean probability if only predictions of more entropy (nats) are thought about."""
        return float(np.where(self.entropy > threshold, self.gold_mix, self.gold_base).mean())


@torch.no_grad()
def measure_answers(
    quiet: QuietStar,
    text: TextRows,
    thoughts: Tensor,
    run: RunConfig,
    fixed_weight: float | None = None,
) -> AnswerTable:
    """Predict every answer with what was thought before it, and without.

    `thoughts` (R, T, n) are those of a `TokenTable`; the others as of `measure_tokens`.
    """
    questions, size, device = text.questions or (), run.micro_batch or run.batch, quiet.start.device
    table = AnswerTable(*np.zeros((len(AnswerTable._fields), len(questions))))
    for first in range(0, len(text.tokens), size):
        these = [i for i, q in enumerate(questions) if first <= q.row < first + size]
        if not these:
            continue
        rows = [questions[i].row for i in these]
        anchors = torch.tensor([[questions[i].position] for i in these])  # (Q, 1)
        own = thoughts[rows, anchors[:, 0]]  # (Q, n)
        # rows are as many as there are questions: a shape that seldom comes twice
        with eager(quiet), quiet.with_settings(**ONE_THOUGHT):
            inputs = text.tokens[rows], text.documents[rows], anchors, own[:, None, None]
            predicted = quiet.predict(*(x.to(device) for x in inputs), fixed_weight=fixed_weight)
        base, mix, weight = (x.flatten(1).cpu() for x in predicted)  # (Q, V), (Q, V), (Q, 1)
        for line, i in enumerate(these):
            q = questions[i]
            table.gold_base[i], table.nll_base[i] = _gold(base[line], q)
            table.gold_mix[i], table.nll_mix[i] = _gold(mix[line], q)
            table.useful[i] = own[line, : len(q.working)].tolist() == list(q.working)
            table.weight[i], table.entropy[i] = weight[line].item(), entropy(base[line]).item()
            table.length[i] = lengths(own[line])
    return table


def _gold(log_p: Tensor, q: Question) -> tuple[float, float]:
    """Probability of the answer among its choices, and its NLL, from (V,) log-probabilities."""
    choices = log_p[list(q.choices)].double()
    return choices.softmax(0)[q.gold].item(), -choices[q.gold].item()
