"""Measure a model with and without its thoughts, and read what it thought.

    python evaluate.py runs/NAME                       held-out text of the run's own data
    python evaluate.py runs/NAME --show 5              and what it thought, also as a page
    python evaluate.py runs/NAME --thoughts 4          another thought length than in training
    python evaluate.py weights/NAME --data NAME        any checkpoint, any prepared data
    python evaluate.py runs/NAME --tasks gsm8k,commonsense_qa    zero-shot, both ways
    python evaluate.py runs/NAME --tasks gsm8k --votes 8         chains of thought, majority of 8
    python evaluate.py runs/NAME --tasks text          hard tokens: where thinking helps and hurts
    python evaluate.py runs/NAME --generate "Q: ..." --show-thoughts
    python evaluate.py --controls runs/NAME --seeds 5  what else could explain the gain
    python evaluate.py --plot runs/NAME                pictures (needs pip install -e '.[plot]')

Results are printed and written to evaluation.json in the run folder (for a folder that is no run,
nothing is written), those of --tasks to results.json there (or in --out, or in runs/MODEL). NLL is
in nats a token, one thought sampled before every token.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qs import checkpoint, report, rivals, weights
from qs.build import choose_placement
from qs.checkpoint import RESULTS
from qs.controls_page import keep_comments, notes, page
from qs.decoding import Decoding
from qs.exams import ARITHMETIC, questions_of
from qs.flags import Parser
from qs.generate import Stream
from qs.hard_tokens import hard_tokens
from qs.modes import READ_BY, asked, refuse_unread
from qs.opened import ROWS, Opened, heldout, heldout_pairs, open_model
from qs.plot import draw
from qs.questions import TASKS, Question
from qs.records import shown
from qs.run import PAGE, PAGE_ROWS
from qs.scores import heldout_score
from qs.tables import Table, results_page, terminal
from qs.tasks import ONE_THOUGHT, by_decile, token_nlls
from qs.training import step_generator
from qs.zeroshot import Exam, against, answers_of
from qs.zeroshot import run as run_exam

TEXT = "text"  # the task that reads held-out text
ALL_TASKS = (*TASKS, ARITHMETIC, TEXT)
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
    parser.add_argument(
        "--markdown", metavar="FILE", help="of --controls and --tasks: also write the tables there"
    )
    parser.add_argument("--plot", metavar="RUN", help="draw what RUN and its controls measured")
    parser.add_argument("--data", help="prepared data, or its name in data/")
    parser.add_argument("--rows", type=int, help="held-out rows to read [the run's, or 32]")
    parser.add_argument("--thoughts", type=int, help="n: tokens in one thought; 0: see train.py")
    parser.add_argument("--sample-temperature", type=float, help="of thoughts; 0 is greedy")
    parser.add_argument("--seq", type=int, help="T: tokens in a row")
    parser.add_argument("--seed", type=int, help="seed of the thoughts")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--show", type=int, default=0, help="passages to show with their thoughts")
    exams = parser.add_argument_group("question sets")
    exams.add_argument("--tasks", metavar="LIST", help=f"some of {','.join(ALL_TASKS)}")
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


def opened_by(
    args: argparse.Namespace, model: str, reads: bool = True, varies: bool = False
) -> Opened:
    """Load a model with the settings that flags give.

    Args:
        args: the command line.
        model: a run or a checkpoint.
        reads: whether it will read held-out text, in rows of --seq.
        varies: whether it will read texts of many lengths: layers that are compiled would be
            compiled for each.

    Raises:
        ValueError: it does not think, and what thinking does to text is asked for.
    """
    thought = {name: getattr(args, name) for name in ("thoughts", "sample_temperature")}
    run = {name: getattr(args, name) for name in ("device", "data", "seq", "seed")}
    if not reads:  # what it was trained in is nothing to what it is asked
        thought, run = ONE_THOUGHT | thought, run | {"seq": 2}
    run |= {"compile": False} if varies else {}
    opened = open_model(model, thought, run | {"eval_rows": args.rows}, reads)
    if reads and args.tasks and not opened.config.run.thinks:
        raise ValueError(
            f"{model} was trained with --objective {opened.config.run.objective}: --tasks {TEXT} "
            "expects a model that thinks, so leave it out"
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


def exam_task(
    opened: Opened, exam: Exam, questions: list[Question], out: Path, other: Path | None
) -> tuple[dict[str, Any], list[Table]]:
    """Question sets: the probability of gold answers, decoded answers, chains of thought."""
    summary = run_exam(exam, opened.quiet, opened.tokenizer, questions, out)
    tables = [report.exam_table(exam, summary)]
    if other is not None:
        summary["against"] = against(out / exam.file, other)
        tables.append(report.against_table(summary["against"]))
    return {"exam": dataclasses.asdict(exam)} | summary, tables


def tasks(args: argparse.Namespace, command: str) -> None:
    """Measure a model on question sets and on text; print, and write into its results."""
    names = list(dict.fromkeys(args.tasks.split(",")))
    if unknown := [name for name in names if name not in ALL_TASKS]:
        raise ValueError(f"--tasks: expected some of {','.join(ALL_TASKS)}; got {unknown[0]!r}")
    sets = [name for name in names if name != TEXT]
    read = {x: questions_of(x, args.questions, args.limit) for x in sets}
    opened = opened_by(args, args.model, reads=TEXT in names, varies=bool(sets))
    config, digest = opened.config, weights.digest(opened.folder) if sets else ""
    planned = {
        name: Exam(
            task=name,
            model=str(opened.folder),
            weights=digest,
            thoughts=0 if config.run.objective == "plain" else config.thought.thoughts,
            samples=args.samples,
            votes=args.votes,
            temperature=0.9 if args.temperature is None else args.temperature,
            batch=args.batch,
            seed=config.run.seed,
        )
        for name in sets
    }
    folder = args.against and Path(args.against)
    others = {x: answers_of(exam.kind, folder) if folder else None for x, exam in planned.items()}
    out = Path(args.out) if args.out else opened.run or Path("runs") / opened.folder.name
    print(f"model   {opened.folder}\ndevice  {opened.placement}\nanswers {out}")
    out.mkdir(parents=True, exist_ok=True)
    path, tables = out / RESULTS, []
    environment = report.environment(str(opened.placement))
    for name in names:
        results = checkpoint.read_json(path) if path.is_file() else {}
        if name == TEXT:
            found, made = hard_tokens(opened)
            results[TEXT] = found | {"environment": environment}
        else:
            exam = planned[name]
            found, made = exam_task(opened, exam, read[name], out, others[name])
            found["environment"] = environment
            results["exams"] = results.get("exams", {}) | {exam.file: found}
        checkpoint.write_json(path, results)
        print("\n" + "\n\n".join(map(terminal, made)))
        tables += made
    print(f"\nwritten to {path}" + (" and, a line for each question, beside it" if read else ""))
    if args.markdown:
        title = f"{opened.folder} on {', '.join(names)}"
        Path(args.markdown).write_text(
            results_page(title, command, environment, tables), encoding="utf-8"
        )
        print(f"written to {args.markdown}")


def prompts_of(text: str) -> Iterator[str]:
    """A text; or the lines of a file or of standard input, as they come.

    Raises:
        ValueError: there is no line.
    """
    lines: Iterable[str] = [text]
    if text == "-":
        lines = (line.removesuffix("\n") for line in sys.stdin)
    elif os.path.isfile(text):  # Path.is_file raises where a text is too long for a name
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007
        yield line
    if not count:
        raise ValueError(f"--generate {text}: expected a prompt in each line, found no line")


def continue_text(args: argparse.Namespace) -> None:
    """Go on from prompts, token by token, and show what was thought before each."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Decoding)}
    decoding = Decoding(**{name: value for name, value in given.items() if value is not None})
    opened = opened_by(args, args.model, reads=False, varies=True)
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
        print(
            f"\n[{counts.tokens} tokens, {counts.thoughts} thoughts, "
            f"{counts.slots} slots in {counts.passes} passes]"
        )


def plot(args: argparse.Namespace) -> None:
    """Pictures of a run: training, thought lengths, hard tokens."""
    opened = opened_by(args, args.plot)
    run, config, quiet = opened.run, opened.config, opened.quiet
    if run is None:
        raise ValueError(f"{args.plot} is no run: --plot draws what a run folder holds")
    deciles = []
    if config.run.thinks:
        found = token_nlls(quiet, heldout_pairs(opened), step_generator(config.run.seed, 0))
        deciles = by_decile(found.nll_base, found.nll_mix, found.documents)
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
        tasks(args, shlex.join(["python", "evaluate.py", *argv]))
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
