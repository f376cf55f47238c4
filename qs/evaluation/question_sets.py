"""Question sets, zero-shot: a line for each question, and what all of them come to.

A question is read once. The probability of its answer, without thoughts, with greedy and with
sampled ones, and the answers that are decoded go on from that reading. With votes, chains of
thought are drawn instead, and the majority of their numbers is the answer.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qs.data.answers import final_number, majority
from qs.data.prompts import COT_STOPS, cot_final_prompt, cot_prompt, cut
from qs.data.question_sets import BenchmarkQuestion, parse_direct
from qs.evaluation.exam_results import Exam, Line, Summary, read_answers, summary
from qs.evaluation.gold_probability import Item, item
from qs.files import JsonLines
from qs.inference.cache import read_texts
from qs.inference.decoding import Decoding
from qs.inference.loglikelihood import Thinking, score, seed_of
from qs.inference.write import write
from qs.model.tokenizer import Tokenizer
from qs.output import progress
from qs.quietstar.algorithm import QuietStar

ANSWER_TOKENS = 16  # of a direct answer, at most
NUMBER_TOKENS = 12  # of the number after a chain of thought


def run(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    questions: Sequence[BenchmarkQuestion],
    out: Path,
) -> Summary:
    """Answer what is not answered yet in the folder `out`, and sum up.

    Raises:
        ValueError: the file of answers is damaged.
    """
    answers = JsonLines(out / exam.file)
    items = [item(question, tokenizer) for question in questions]
    longest = quiet.model.config.max_positions - exam.thoughts - 2
    longest -= 1 + _asking(tokenizer) if exam.votes else 0  # a chain has one token at least
    texts = [tokenizer.prompt(cot_prompt(x.question)) if exam.votes else x.text.ids for x in items]
    fits = [len(text) <= longest for text in texts]
    fit = [x for x, fitting in zip(items, fits, strict=True) if fitting]
    # of similar length together, the longest first: the first batch needs most memory
    order = sorted(fit, key=lambda x: -len(x.text.ids))
    done = _answered(answers.path, fit)
    answer = _chains if exam.votes else _direct
    began = time.perf_counter()
    with progress(None, exam.kind, len(fit), unit=" questions") as bar:
        for first in range(0, len(fit), exam.batch):
            batch = order[first : first + exam.batch]
            left = {x.question.digest for x in batch} - done
            bar.update(len(batch) - len(left))
            if left:  # the whole batch again: rounding does not depend on what was done
                made = answer(exam, quiet, tokenizer, batch)
                answers.append([line for line in made if line["question"] in left])
                bar.update(len(left))
    facts = {
        "questions": len(questions),
        "too_long": [x.question.id for x, fitting in zip(items, fits, strict=True) if not fitting],
        "file": exam.file,
        "answered": len(fit) - len(done),
        "seconds": time.perf_counter() - began,
    }
    known = {line.get("question"): line for line in read_answers(answers.path)}
    return summary([known[x.question.digest] for x in fit], facts)


def _answered(path: Path, items: Sequence[Item]) -> set[str]:
    """Digests of the questions that a file has answers to; what is to be asked again is told."""
    lines = read_answers(path)
    done = {line.get("question") for line in lines} & {x.question.digest for x in items}
    left = {x.question.id for x in items if x.question.digest not in done}
    if again := len(left & {line["id"] for line in lines}):
        print(
            f"{path}: expected answers to these questions, found {again:,} to others with the same "
            "id, or of an earlier version, which did not write what it had asked; asking again",
            file=sys.stderr,
        )
    return done


def _begun(x: Item) -> Line:
    """What a line of answers begins with: which question it is of."""
    return {"id": x.question.id, "question": x.question.digest}


def _direct(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, items: Sequence[Item]
) -> list[Line]:
    """Probability of gold answers, and the answers that are decoded."""
    texts, prompts, n = [x.text for x in items], [x.prompt for x in items], exam.thoughts
    ids = [text.ids for text in texts]
    reading = read_texts(quiet.model, ids, visibility=quiet.visibility)
    thinking = {"base": Thinking("never")}
    if n:
        thinking["greedy"] = Thinking("always", 1, 0.0, exam.seed)
        thinking["sampled"] = Thinking("always", exam.samples, 1.0, exam.seed)
    scored = score(quiet, texts, list(thinking.values()), reading)
    scores = dict(zip(thinking, scored, strict=True))
    said = {}
    for way, when in exam.ways.items():
        decoding = Decoding(max_tokens=ANSWER_TOKENS, think_when=when)
        begun = reading.until(list(map(len, prompts)), ANSWER_TOKENS + n + 2)
        written = write(quiet, tokenizer, prompts, decoding, exam.seed, ["\n"], reading=begun)
        said[way] = [cut(each.text, ["\n"]).removeprefix(" ") for each in written if each]
    lines = []
    for i, x in enumerate(items):
        line: Line = _begun(x) | {"gold_chance": x.chance}
        line |= {f"gold_{way}": x.gold(scores[way][i]) for way in scores}
        if n:
            tokens, slots = len(x.text.ids), 2 * n + 2  # n slots are sampled, then n + 2 scored
            line |= {"tokens": tokens, "slots": len(x.text.positions) * slots}
            line["slots_everywhere"] = tokens * slots
        for way in exam.ways:
            answer = parse_direct(x.question, said[way][i].lstrip(" "))
            line |= {f"said_{way}": said[way][i], f"exact_{way}": answer == x.question.gold}
        if x.options:
            line["option_chance"] = 1 / len(x.options)
            line |= {f"option_{way}": x.chosen(scores[way][i]) for way in scores}
        lines.append(line)
    return lines


def _chains(
    exam: Exam, quiet: QuietStar, tokenizer: Tokenizer, items: Sequence[Item]
) -> list[Line]:
    """Chains of thought and the number that each comes to; the majority is the answer."""
    lines = [_begun(x) for x in items]
    prompts = [cot_prompt(x.question) for x in items for _ in range(exam.votes)]
    numbers = [seed_of(x.text.ids) + vote for x in items for vote in range(exam.votes)]
    later = [number + exam.votes for number in numbers]
    room = _asking(tokenizer)
    for way, when in exam.ways.items():
        chains = _continue(exam, quiet, tokenizer, prompts, when, exam.max_tokens, numbers, room)
        asked = [
            cot_final_prompt(prompt + cut(chain, COT_STOPS))
            for prompt, chain in zip(prompts, chains, strict=True)
        ]
        ends = _continue(exam, quiet, tokenizer, asked, when, NUMBER_TOKENS, later)
        for i, (line, x) in enumerate(zip(lines, items, strict=True)):
            own = slice(i * exam.votes, (i + 1) * exam.votes)
            votes, gold = [final_number(end) for end in ends[own]], final_number(x.question.gold)
            line |= {f"votes_{way}": votes, f"exact_{way}": majority(votes) == gold}
            line[f"single_{way}"] = float(np.mean([vote == gold for vote in votes]))
            line[f"chain_{way}"] = chains[own][0]
    return lines


def _continue(
    exam: Exam,
    quiet: QuietStar,
    tokenizer: Tokenizer,
    prompts: list[str],
    when: str,
    tokens: int,
    numbers: list[int],
    room: int = 0,
) -> list[str]:
    """What the model writes after each prompt, drawn by its number, with room for what follows."""
    ids = [tokenizer.prompt(prompt) for prompt in prompts]
    decoding = Decoding(max_tokens=tokens, temperature=exam.temperature, think_when=when)
    longest = quiet.model.config.max_positions - exam.thoughts - 2 - room
    written = write(quiet, tokenizer, ids, decoding, exam.seed, COT_STOPS, longest, numbers)
    return [each.text if each else "" for each in written]


def _asking(tokenizer: Tokenizer) -> int:
    """Tokens that follow a chain of thought: the words that ask for its number, and the number."""
    return len(tokenizer.encode(cot_final_prompt(""))) + NUMBER_TOKENS
