"""Using a model that thinks: output tokens with a thought before each, and a question set."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from qs.bench.measure import Measured, Stopwatch, measure
from qs.bench.work import Work, build
from qs.data.question_sets import ARITHMETIC, BenchmarkQuestion
from qs.evaluation import question_sets
from qs.evaluation.exam_results import Exam
from qs.inference.decoding import Decoding
from qs.inference.generate import Stream
from qs.model.tokenizer import Tokenizer

TOKENS = 24  # output tokens of a row


def measure_generate(work: Work) -> Iterator[tuple[str, Measured]]:
    """Stages: one row, then --batch rows; a prompt of T tokens is read, then TOKENS are written."""
    quiet, decoding = build(work)[0], Decoding(max_tokens=TOKENS)
    prompts = torch.randint(3, work.shape.vocab_size, (work.batch, work.seq)).tolist()
    for rows in sorted({1, work.batch}):
        written = 0

        def write(watch: Stopwatch, number: int, rows: int = rows) -> None:
            nonlocal written
            results = Stream(quiet, prompts[:rows], decoding).finish()
            written = sum(len(result.tokens) for result in results)
            watch.lap("rows")

        result = measure(work, quiet.start.device, write)
        result.facts = {"tokens_per_second": written / median(result.seconds["total"])}
        yield f"rows {rows}", result


def measure_evaluate(work: Work) -> Iterator[tuple[str, Measured]]:
    """One stage: a question set scored and answered, without thoughts, with greedy and K others."""
    tokenizer = Tokenizer(work.tokenizer)
    if tokenizer.vocab_size > work.shape.vocab_size:
        raise ValueError(
            f"--tokenizer {work.tokenizer}: expected at most the {work.shape.vocab_size} tokens of "
            f"size {work.size}, found {tokenizer.vocab_size}; name a larger size"
        )
    quiet = build(work)[0]
    with torch.no_grad():  # what the tokenizer does not know is never the likeliest
        quiet.model.head[tokenizer.vocab_size :] = 0
    questions = [_question(tokenizer, number, work.seq) for number in range(work.questions)]
    exam = Exam(ARITHMETIC, work.size, "", work.thoughts, work.samples, batch=work.batch)

    def answer(watch: Stopwatch, number: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            question_sets.run(exam, quiet, tokenizer, questions, Path(folder))
        watch.lap("questions")

    result = measure(work, quiet.start.device, answer)
    each = median(result.seconds["total"]) / len(questions)
    result.facts = {"seconds_per_question": each}
    yield "questions", result


def _question(tokenizer: Tokenizer, number: int, tokens: int) -> BenchmarkQuestion:
    """A sum after as many words as make a prompt of about that many tokens."""
    words = f" She finds {number} more."
    asked = f"What is {number} + {number}?"
    room = tokens - len(tokenizer.encode(f"Q: {asked}\nA:"))
    text = words * max(0, round(room / len(tokenizer.encode(words)))) + asked
    return BenchmarkQuestion(str(number), text, (), str(2 * number), str(2 * number))
