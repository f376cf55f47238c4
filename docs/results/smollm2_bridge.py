"""Text that needs reasoning, in real language: problems with their equations.

A document is a problem and its answer, `Q: ..\\nA: 72\\n`. In some the equations of the published
solution stand before the answer, `A: 48/2=24, 48+24=72 => 72\\n`: short enough for a thought, and
they begin where a thought that is had before the answer begins.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smollm2_easy import easy_problems
from smollm2_study import Study
from torch import Tensor

from qs.config import PADDING
from qs.data.answers import parse_number
from qs.data.prepare import prepare_dataset
from qs.data.prompts import direct_answer, direct_prompt
from qs.data.question_sets import BenchmarkQuestion, read_questions
from qs.evaluation.statistics import mean_estimate
from qs.evaluation.tokens import TextRows
from qs.inference.cache import read_texts
from qs.quietstar.ends import PAUSE

WRITTEN = 0.3  # share of documents with their equations
FITS = 24  # tokens of the equations, at most
EASY = 8000  # problems drawn
NEW_FROM = 60_000  # to look for new equations in
ENDS = " =>"  # what stands between the last equation and the answer
EQUATION = re.compile(r"<<([^<>]*)>>")


@dataclass(frozen=True)
class Problem:
    """A question and the equations that lead to its answer."""

    question: BenchmarkQuestion
    equations: str

    @property
    def left_out(self) -> str:
        return direct_prompt(self.question) + direct_answer(self.question)

    @property
    def written(self) -> str:
        answer = direct_answer(self.question)
        return f"{direct_prompt(self.question)} {self.equations}{ENDS}{answer}"


@dataclass(frozen=True)
class Bridge:
    """Datasets of such documents.

    Attributes:
        written: folder with documents that have their equations, longer ones too.
        mixed: folder with all documents whose equations fit; held-out ones have none.
        asking: ids that end where an answer begins.
        heldout: problems that are in no training document.
        new: easy ones whose equations are in none either, whatever the words: most of the held-out
            ones have those of a training document.
    """

    written: Path
    mixed: Path
    asking: list[int]
    heldout: list[Problem]
    new: list[Problem]


def read_problems(kind: str, questions: Path, study: Study) -> tuple[list[Problem], list[Problem]]:
    """Problems whose equations fit, and those with longer ones, in a drawn order.

    Args:
        kind: "bridge", GSM8K's training problems from the folder of the question sets; or "easy".
    """
    if kind == "easy":
        pairs = easy_problems(EASY)
    else:
        lines = (questions / "gsm8k" / "train.jsonl").read_text().splitlines()
        written = (", ".join(EQUATION.findall(json.loads(line)["answer"])) for line in lines)
        pairs = list(zip(read_questions("gsm8k", "train", questions), written, strict=True))
    short, long = [], []
    for question, equations in pairs:
        tokens = study.tokenizer.encode(f" {equations}{ENDS}")
        if equations:
            fits = len(tokens) - 1 <= FITS
            (short if fits else long).append(Problem(question, equations))
    random.Random(0).shuffle(short)
    return short, long


def new_problems(known: list[Problem], many: int) -> list[Problem]:
    """Easy problems with equations that no other has: at most `many`."""
    seen, found = {problem.equations for problem in known}, {}
    for question, equations in easy_problems(NEW_FROM, seed=1):
        if equations not in seen:
            found.setdefault(equations, Problem(question, equations))
    return list(found.values())[:many]


def make_bridge(
    kind: str, problems: list[Problem], long: list[Problem], study: Study, model: Path, out: Path
) -> Bridge:
    """Prepare both datasets in a folder; problems that do not fit are only read written out."""
    heldout, train = problems[: study.sizes.problems], problems[study.sizes.problems :]
    new = new_problems(problems, study.sizes.problems) if kind == "easy" else []
    written = train[: round(WRITTEN * len(train))]
    mixed = [p.written for p in written] + [p.left_out for p in train[len(written) :]]
    random.Random(1).shuffle(mixed)
    taught = [p.written for p in written + long]
    random.Random(2).shuffle(taught)
    texts = {"written": taught, "mixed": mixed}
    for name, documents in texts.items():
        for part, some in {"train": documents, "heldout": [p.left_out for p in heldout]}.items():
            path = out / f"{name}-{part}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
        prepare_dataset(
            [out / f"{name}-train.jsonl"],
            out / name,
            model,
            workers=1,
            heldout_sources=[out / f"{name}-heldout.jsonl"],
        )
    asking = study.tokenizer.encode("\nA: ")
    return Bridge(out / "written", out / "mixed", asking, heldout, new)


def rows_of(study: Study, problems: list[Problem]) -> tuple[TextRows, Tensor]:
    """A row for each problem without its equations, and (B, 1) the slot before its answer."""
    encode = study.tokenizer.encode
    rows = [encode(p.left_out, bos=True, eos=True) for p in problems]
    prompts = [encode(direct_prompt(p.question) + " ", bos=True) for p in problems]
    T = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    documents = torch.tensor([[0] * len(row) + [PADDING] * (T - len(row)) for row in rows])
    return TextRows(tokens, documents), torch.tensor([[len(prompt) - 1] for prompt in prompts])


def true_workings(study: Study, problems: list[Problem]) -> Tensor:
    """(B, 1, 1, n) equations as thoughts; pauses before those that are shorter."""
    n, thoughts = study.quiet.config.thoughts, []
    for problem in problems:
        ids = study.tokenizer.encode(f" {problem.equations}{ENDS}")[1:][-n:]
        thoughts.append([PAUSE] * (n - len(ids)) + ids)
    return torch.tensor(thoughts)[:, None, None]


def reached(said: str) -> str | None:
    """The number that equations come to, as far as they are written."""
    kept = re.split(r"=>|\n|Q:", said)[0]
    numbers = re.findall(r"=\s*\$?(-?[\d,]*\.?\d+)", kept)
    return parse_number(numbers[-1]) if numbers else None


def bridge_room(study: Study, problems: list[Problem], K: int) -> dict[str, Any]:
    """What thoughts before the answer earn: own, foreign, pauses, and the true equations."""
    text, anchors = rows_of(study, problems)
    device = study.quiet.start.device
    others = {"true": true_workings(study, problems)}
    found, own, rewards = study.room(K, text, anchors.to(device), others)
    right = torch.tensor(
        [
            [reached(study.said(z)) == p.question.gold for z in thoughts[0]]
            for p, thoughts in zip(problems, own, strict=True)
        ]
    )
    equations = [["=" in study.said(z) for z in thoughts[0]] for thoughts in own]
    found["share with an equation"] = torch.tensor(equations).float().mean().item()
    found["share right"] = right.float().mean().item()
    found["problems with a right one"] = right.any(1).float().mean().item()
    both = right.any(1) & ~right.all(1)  # right and wrong thoughts of the same problem
    for weight, each in rewards["own"].items():
        good = (each * right).sum(1) / right.sum(1).clamp(min=1)
        bad = (each * ~right).sum(1) / (~right).sum(1).clamp(min=1)
        if both.any():
            difference = mean_estimate((good - bad)[both].numpy())
            found[weight]["right over wrong"] = list(difference)
    found["paired problems"] = int(both.sum())
    return found


@torch.no_grad()
def answer_nll(study: Study, problems: list[Problem]) -> dict[str, float]:
    """NLL of the answers in nats, after the problem alone and after its true equations, as text."""
    found, encode, many = {}, study.tokenizer.encode, study.sizes.batch_asked
    for way in ("left_out", "written"):
        sums = []
        for first in range(0, len(problems), many):
            some = problems[first : first + many]
            texts = [encode(getattr(problem, way), bos=True) for problem in some]
            outputs = read_texts(study.quiet.model, texts).outputs
            for problem, ids, each in zip(some, texts, outputs, strict=True):
                answer = ids[-len(encode(direct_answer(problem.question).lstrip(" "))) :]
                end = len(ids) - 1
                log_p = study.quiet.model.logits(each[end - len(answer) : end]).log_softmax(-1)
                chosen = log_p.gather(1, torch.tensor(answer, device=log_p.device)[:, None])
                sums.append(-chosen.sum().item())
        found[way] = sum(sums) / len(sums)
    return found
