"""Measure a model with and without its thoughts, and read what it thought.

    python evaluate.py runs/NAME                       held-out text of the run's own data
    python evaluate.py runs/NAME --show 5              and what it thought, also as a page
    python evaluate.py runs/NAME --thoughts 4          another thought length than in training
    python evaluate.py weights/NAME --data NAME        any checkpoint, any prepared data
    python evaluate.py runs/NAME --tasks gsm8k,commonsense_qa    zero-shot, both ways
    python evaluate.py runs/NAME --tasks gsm8k --votes 8         chains of thought, majority of 8
    python evaluate.py runs/NAME --generate "Q: ..." --show-thoughts
    python evaluate.py --controls runs/NAME --seeds 5  what else could explain the gain
    python evaluate.py --plot runs/NAME                pictures (needs pip install -e '.[plot]')

Results are printed and written to evaluation.json in the run folder (for a folder that is no run,
nothing is written). NLL is in nats a token, one thought sampled before every token.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from qs import checkpoint, report, rivals
from qs.answers import gold_above, marked, measure
from qs.build import choose_placement
from qs.checkpoint import RESULTS
from qs.controls_page import keep_comments, notes, page
from qs.decoding import Decoding
from qs.exams import ARITHMETIC, questions_of
from qs.flags import Parser
from qs.generate import Stream
from qs.modes import READ_BY, asked, refuse_unread
from qs.opened import ROWS, Opened, heldout, heldout_pairs, open_model
from qs.plot import draw
from qs.questions import TASKS
from qs.records import shown
from qs.run import PAGE, PAGE_ROWS
from qs.scores import heldout_score
from qs.tasks import by_decile, frontier, most_helped, token_nlls
from qs.training import step_generator
from qs.zeroshot import Exam, against
from qs.zeroshot import run as run_exam

TEXT = "text"  # the task that reads held-out text
LEAST = {  # values of flags
    **{"rows": 1, "show": 0, "seeds": 1, "jobs": 1},
    **{"limit": 1, "batch": 1, "samples": 1, "votes": 0},
}


def settings(argv: list[str]) -> argparse.Namespace:
    """The command line; a flag that is not given takes the run's own setting.

    Raises:
        ValueError: a flag is unknown, out of range, or not read by what is asked for.
    """
    parser = Parser("evaluate.py", __doc__)
    parser.add_argument("model", nargs="?", help="a run, a checkpoint, or a name in weights/")
    parser.add_argument("--controls", metavar="RUN", help="train and measure what to compare with")
    parser.add_argument("--seeds", type=int, default=1, help="of --controls: how many [1]")
    parser.add_argument("--jobs", type=int, default=1, help="of --controls: trainings at once [1]")
    parser.add_argument("--markdown", metavar="FILE", help="of --controls: also write it there")
    parser.add_argument("--plot", metavar="RUN", help="draw what RUN and its controls measured")
    parser.add_argument("--data", help="prepared data, or its name in data/")
    parser.add_argument("--rows", type=int, help="held-out rows to read [the run's, or 32]")
    parser.add_argument("--thoughts", type=int, help="n: tokens in one thought")
    parser.add_argument("--sample-temperature", type=float, help="of thoughts; 0 is greedy")
    parser.add_argument("--seq", type=int, help="T: tokens in a row")
    parser.add_argument("--seed", type=int, help="seed of the thoughts")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--show", type=int, default=0, help="passages to show with their thoughts")
    exams = parser.add_argument_group("question sets")
    exams.add_argument(
        "--tasks", metavar="LIST", help=f"some of {','.join((*TASKS, ARITHMETIC, TEXT))}"
    )
    exams.add_argument("--questions", default="data", help="folder of the question sets [data]")
    exams.add_argument(
        "--limit",
        type=int,
        help="questions from the top of each set [all]; sums of each length [100]",
    )
    exams.add_argument("--batch", type=int, default=8, help="questions at a time [8]")
    exams.add_argument("--samples", type=int, default=4, help="sampled thoughts to average [4]")
    exams.add_argument("--votes", type=int, default=0, help="chains of thought to vote [0: none]")
    exams.add_argument("--against", metavar="FOLDER", help="compare with answers of another model")
    exams.add_argument("--out", metavar="FOLDER", help="of answers [the run; else runs/MODEL]")
    text = parser.add_argument_group("text")
    text.add_argument("--generate", metavar="PROMPT", help="a text, a file of lines, or - (stdin)")
    text.add_argument("--show-thoughts", action="store_true", help="what comes before each token")
    for f in dataclasses.fields(Decoding):
        kind = {"max_tokens": int, "think_when": str}.get(f.name, float)
        flag, default = f"--{f.name.replace('_', '-')}", f"[{f.default}]"
        text.add_argument(flag, type=kind, help=f"{f.metadata['help']} {default}")
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(READ_BY)))
    given = [name for name in READ_BY if getattr(args, name) is not None]
    for name in READ_BY.keys() - set(given):
        setattr(args, name, parser.get_default(name))
    args.command = shlex.join(["python", "evaluate.py", *argv])
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is at least {least}, got {value}")
    if sum(x is not None for x in (args.model, args.controls, args.plot)) != 1:
        raise ValueError("give one of: a model, --controls RUN, --plot RUN")
    refuse_unread(given, asked(args, TEXT))
    return args


def opened_by(args: argparse.Namespace, model: str, reads: bool = True) -> Opened:
    """Load a model with the settings that flags give; `reads`: it will read held-out text.

    Raises:
        ValueError: it does not think, and what thinking does to text is asked for.
    """
    thought = {name: getattr(args, name) for name in ("thoughts", "sample_temperature")}
    run = {name: getattr(args, name) for name in ("device", "data", "seq", "seed")}
    opened = open_model(model, thought, run | {"eval_rows": args.rows}, reads)
    if reads and args.tasks and not opened.config.run.thinks:
        raise ValueError(
            f"{model} was trained with --objective plain: --tasks {TEXT} expects a model that "
            "thinks, so leave it out"
        )
    return opened


def controls(args: argparse.Namespace) -> None:
    """Train what a run is compared with, unless it is there, and measure all of it."""
    run, todo = Path(args.controls), rivals.jobs(Path(args.controls), args.seeds)
    config = checkpoint.read_config(run)
    rows = args.rows or config.run.eval_rows or ROWS
    rivals.check(run, todo, rows)
    here = report.environment(str(choose_placement(config.run)))
    rivals.train_all(todo, Path(__file__).with_name("train.py"), args.jobs)
    tables = rivals.compare(run, args.seeds, rows)
    named = {title: [dataclasses.asdict(line) for line in lines] for title, lines in tables.items()}
    trained = rivals.trained_by(run, args.seeds)
    results = {"command": args.command, "environment": here, "trained": trained, "tables": named}
    checkpoint.write_json(run / rivals.CONTROLS, results)
    measured = ", ".join(f"{key} {value}" for key, value in here.items())
    made = {"Measured with": measured, "Trained with": trained}
    about = notes(rivals.questions(run, rows), config.thought.sample_temperature)
    text = page(tables, args.command, made, about)
    print("\n" + text)
    for path in filter(None, (run / "controls.md", args.markdown and Path(args.markdown))):
        keep_comments(path, text)
        print(f"written to {path}")


def text_task(opened: Opened) -> dict[str, Any]:
    """Hard tokens: what thinking does by difficulty, where it is worth it, and examples."""
    seed = opened.config.run.seed
    found = token_nlls(opened.quiet, heldout_pairs(opened), step_generator(seed, 0))
    deciles = by_decile(found.nll_base, found.nll_mix, found.rows)
    spared = frontier(found, opened.config.thought.thoughts)
    folder, run = heldout(opened).folder, opened.config.run
    if (text := marked(folder, opened.tokenizer, run.seq, run.eval_rows)) is not None:
        rows = [slice(i, i + run.batch) for i in range(0, len(text.tokens), run.batch)]
        asked = measure(opened.quiet, text, rows, step_generator(seed, 0))
        spared = [dataclasses.replace(s, gold=gold_above(asked, s.above)) for s in spared]
    best, worst = most_helped(opened.quiet, heldout_pairs(opened), step_generator(seed, 0), 20)
    print("\n" + "\n".join(report.text_lines(deciles, spared, best, worst, opened.tokenizer)))
    tables = {"deciles": deciles, "frontier": spared, "helped": best, "hurt": worst}
    return {name: [dataclasses.asdict(x) for x in table] for name, table in tables.items()}


def exams(args: argparse.Namespace) -> None:
    """Question sets: the probability of gold answers, decoded answers, chains of thought."""
    names = args.tasks.split(",")
    read = {x: questions_of(x, args.questions, args.limit) for x in names if x != TEXT}
    opened = opened_by(args, args.model, reads=TEXT in names)
    out = Path(args.out) if args.out else opened.run or Path("runs") / opened.folder.name
    print(f"model   {opened.folder}\ndevice  {opened.placement}\nanswers {out}")
    found = {}
    for name, questions in read.items():
        exam = Exam(
            task=name,
            model=str(opened.folder),
            thoughts=opened.config.thought.thoughts,
            samples=args.samples,
            votes=args.votes,
            temperature=0.9 if args.temperature is None else args.temperature,
            batch=args.batch,
            seed=opened.config.run.seed,
        )
        began = time.perf_counter()
        summary = run_exam(exam, opened.quiet, opened.tokenizer, questions, out)
        summary["seconds"] = time.perf_counter() - began
        lines = report.exam_lines(name, summary)
        if args.against:
            summary["against"] = against(out / exam.file, Path(args.against))
            lines += report.against_lines(summary["against"])
        found[exam.file] = {"exam": dataclasses.asdict(exam)} | summary
        print("\n" + "\n".join(lines))
    path = out / RESULTS
    results = checkpoint.read_json(path) if path.is_file() else {}
    results["exams"] = results.get("exams", {}) | found
    if TEXT in names:
        results[TEXT] = text_task(opened)
    out.mkdir(parents=True, exist_ok=True)
    results["environment"] = report.environment(str(opened.placement))
    checkpoint.write_json(path, results)
    print(f"\nwritten to {path}" + (" and, a line for each question, beside it" if read else ""))


def prompts_of(text: str) -> list[str]:
    """A text; or the lines of a file or of standard input."""
    if text == "-":
        return sys.stdin.read().splitlines()
    if Path(text).is_file():
        return Path(text).read_text(encoding="utf-8").splitlines()
    return [text]


def continue_text(args: argparse.Namespace) -> None:
    """Go on from prompts, token by token, and show what was thought before each."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Decoding)}
    decoding = Decoding(**{name: value for name, value in given.items() if value is not None})
    opened = opened_by(args, args.model, reads=False)
    for prompt in prompts_of(args.generate):
        ids = opened.tokenizer.encode(prompt, bos=True)
        stream = Stream(opened.quiet, [ids], decoding, opened.config.run.seed)
        print(prompt, end="\n" if args.show_thoughts else "", flush=True)
        shown_text = ""
        for ((_, token),) in stream:
            if args.show_thoughts:
                print(report.token_line(token, opened.tokenizer), flush=True)
                continue
            text = opened.tokenizer.decode(ids + stream.results()[0].text_ids)[len(prompt) :]
            if not text.endswith("\ufffd"):  # half a character
                print(text[len(shown_text) :], end="", flush=True)
                shown_text = text
        counts = stream.counts
        print(f"\n[{counts.tokens} tokens, {counts.thoughts} thoughts, {counts.slots} slots]")


def plot(args: argparse.Namespace) -> None:
    """Pictures of a run: training, thought lengths, hard tokens."""
    opened = opened_by(args, args.plot)
    run, config, quiet = opened.run, opened.config, opened.quiet
    if run is None:
        raise ValueError(f"{args.plot} is no run: --plot draws what a run folder holds")
    deciles = []
    if config.run.thinks:
        found = token_nlls(quiet, heldout_pairs(opened), step_generator(config.run.seed, 0))
        deciles = by_decile(found.nll_base, found.nll_mix, found.rows)
    for path in draw(run, deciles):
        print(f"written to {path}")
    if not (run / rivals.CONTROLS).is_file():
        print(f"no thought-length curve: make it with python evaluate.py --controls {run}")


def evaluate(argv: list[str]) -> int:
    """Load, measure, report. Returns the exit status."""
    args = settings(argv)
    if args.controls is not None:
        controls(args)
        return 0
    if args.plot is not None:
        plot(args)
        return 0
    if args.tasks is not None:
        exams(args)
        return 0
    if args.generate is not None:
        continue_text(args)
        return 0
    opened = opened_by(args, args.model)
    folder, run, config, placement, quiet, tokenizer = opened
    data = heldout(opened)
    print(f"thought {config.thought.thoughts} tokens, in rows of {config.run.seq}")
    print(f"model   {folder}\ndata    {data.folder}: {data.tokens:,} held-out tokens")
    print(f"device  {placement}")
    rows = config.run.eval_rows
    score = heldout_score(quiet, data, tokenizer, config, rows, "held-out text")
    print("\n" + "\n".join(report.score_lines(score)))
    if args.show and config.run.thinks:
        found = shown(quiet, data, tokenizer, config, min(rows, PAGE_ROWS))
        about = {"model": str(folder), "text": str(data.folder)}
        about["thoughts"] = report.thought_lengths(config.thinking)
        print("\n" + report.thoughts_shown(found, args.show, run and run / PAGE, about))
    if run:
        checkpoint.write_json(
            run / "evaluation.json",
            {
                "checkpoint": folder.name,
                "environment": report.environment(str(placement)),
                "settings": config.to_json(),
                "score": dataclasses.asdict(score),
            },
        )
        print(f"\nwritten to {run / 'evaluation.json'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `evaluate`, with one line instead of a traceback for what a person can mend."""
    try:
        return evaluate(sys.argv[1:] if argv is None else argv)
    except (Exception, KeyboardInterrupt) as error:
        line = report.told(
            error, "interrupted; what is finished is kept: the same command does the rest"
        )
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    sys.exit(main())
