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
    python evaluate.py --rounds RUN RUN ...            runs of STaR by round and difficulty
    python evaluate.py --compare MODEL MODEL ...       STaR, Quiet-STaR and others side by side
    python evaluate.py --plot runs/NAME                pictures (needs pip install -e '.[plot]')

Results are printed and written to evaluation.json in the run folder (for a folder that is no run,
nothing is written), those of --tasks to results.json there (or in --out, or in runs/MODEL). NLL is
in nats a token, one thought sampled before every token.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qs import cli, files
from qs.config import ONE_THOUGHT, thought_lengths
from qs.data.question_sets import BenchmarkQuestion, questions_of
from qs.evaluation import question_sets, thoughts
from qs.evaluation.hard_tokens import by_decile, hard_tokens
from qs.evaluation.heldout import heldout, heldout_pairs, heldout_score, score_lines
from qs.evaluation.question_sets import Exam, against, answers_of
from qs.evaluation.question_sets import run as run_exam
from qs.evaluation.thoughts import shown
from qs.evaluation.tokens import token_nlls
from qs.files import RESULTS
from qs.inference.decoding import Decoding, token_line
from qs.inference.generate import Stream
from qs.model import weights
from qs.quietstar.load import ROWS, Opened, choose_placement, open_model
from qs.quietstar.sampler import step_generator
from qs.studies import control_runs, star_rounds
from qs.studies.compare import compare
from qs.studies.controls import keep_comments, notes, page
from qs.studies.modes import ALL_TASKS, TEXT, settings
from qs.studies.plots import draw
from qs.tables import Table, markdown, results_page, terminal
from qs.training.trainer import PAGE, PAGE_ROWS


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
    opened = open_model(model, reads, **thought, **run, eval_rows=args.rows)
    if reads and args.tasks and not opened.config.run.thinks:
        raise ValueError(
            f"{model} was trained with --objective {opened.config.run.objective}: --tasks {TEXT} "
            "expects a model that thinks, so leave it out"
        )
    return opened


def controls(args: argparse.Namespace) -> None:
    """Train what a run is compared with, unless it is there, and measure all of it."""
    run, todo = Path(args.controls), control_runs.jobs(Path(args.controls), args.seeds)
    config = files.read_config(run)
    rows = args.rows or config.run.eval_rows or ROWS
    control_runs.check(run, todo, rows)
    here = files.environment(str(choose_placement(config.run)))
    control_runs.train_all(todo, Path(__file__).with_name("train.py"), args.jobs)
    tables = control_runs.compare(run, args.seeds, rows)
    named = {title: [dataclasses.asdict(line) for line in lines] for title, lines in tables.items()}
    trained = control_runs.trained_by(run, args.seeds)
    results = {"command": args.command, "environment": here, "trained": trained, "tables": named}
    files.write_json(run / control_runs.CONTROLS, results)
    measured = ", ".join(f"{key} {value}" for key, value in here.items())
    made = {"Measured with": measured, "Trained with": trained}
    about = notes(control_runs.questions(run, rows), config.thought.sample_temperature)
    text = page(tables, args.command, made, about)
    print("\n" + text)
    for path in filter(None, (run / "controls.md", args.markdown and Path(args.markdown))):
        keep_comments(path, text)
        print(f"written to {path}")


def exam_task(
    opened: Opened, exam: Exam, questions: list[BenchmarkQuestion], out: Path, other: Path | None
) -> tuple[dict[str, Any], list[Table]]:
    """Question sets: the probability of gold answers, decoded answers, chains of thought."""
    summary = run_exam(exam, opened.quiet, opened.tokenizer, questions, out)
    tables = [question_sets.exam_table(exam, summary)]
    if other is not None:
        summary["against"] = against(out / exam.file, other)
        tables.append(question_sets.against_table(summary["against"]))
    return {"exam": dataclasses.asdict(exam)} | summary, tables


def tasks(args: argparse.Namespace) -> None:
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
    environment = files.environment(str(opened.placement))
    for name in names:
        results = files.read_json(path) if path.is_file() else {}
        if name == TEXT:
            found, made = hard_tokens(opened)
            results[TEXT] = found | {"environment": environment}
        else:
            exam = planned[name]
            found, made = exam_task(opened, exam, read[name], out, others[name])
            found["environment"] = environment
            results["exams"] = results.get("exams", {}) | {exam.file: found}
        files.write_json(path, results)
        print("\n" + "\n\n".join(map(terminal, made)))
        tables += made
    print(f"\nwritten to {path}" + (" and, a line for each question, beside it" if read else ""))
    if args.markdown:
        title = f"{opened.folder} on {', '.join(names)}"
        Path(args.markdown).write_text(
            results_page(title, args.command, environment, tables), encoding="utf-8"
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
                print(token_line(token, opened.tokenizer), flush=True)
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


def rounds(args: argparse.Namespace) -> None:
    """Runs of STaR by round and group, as tables and as a picture."""
    arms = star_rounds.read_arms([Path(run) for run in args.rounds])
    text = star_rounds.page(arms, args.command)
    print(text)
    out = Path(args.rounds[0]) / "plots"
    for path in star_rounds.draw_arms(arms, out):
        print(f"written to {path}")
    write_page(args, text)


def compared(args: argparse.Namespace) -> None:
    """Models side by side on problems that can be worked out."""
    table = compare(args.compare, args.on, args.problems, args.device)
    print(f"\n{terminal(table)}")
    write_page(args, markdown(table))


def write_page(args: argparse.Namespace, text: str) -> None:
    """Write Markdown where it was asked for; what a person added there is kept."""
    if args.markdown:
        keep_comments(Path(args.markdown), text)
        print(f"written to {args.markdown}")


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
    if not (run / control_runs.CONTROLS).is_file():
        print(f"no thought-length curve: make it with python evaluate.py --controls {run}")


def evaluate(argv: list[str]) -> int:
    """Load, measure, report. Returns the exit status."""
    args = settings(argv, __doc__)
    modes = {"controls": controls, "rounds": rounds, "compare": compared, "plot": plot}
    modes |= {"tasks": tasks, "generate": continue_text}
    for name, mode in modes.items():
        if getattr(args, name) is not None:
            mode(args)
            return 0
    opened = opened_by(args, args.model)
    folder, run, config, placement, quiet, tokenizer = opened
    data = heldout(opened)
    print(f"thought {config.thought.thoughts} tokens, in rows of {config.run.seq}")
    print(f"model   {folder}\ndata    {data.folder}: {data.tokens:,} held-out tokens")
    print(f"device  {placement}")
    rows = config.run.eval_rows
    score = heldout_score(quiet, data, tokenizer, config, rows, "held-out text")
    print("\n" + "\n".join(score_lines(score)))
    if args.show and config.run.thinks:
        found = shown(quiet, data, tokenizer, config, min(rows, PAGE_ROWS))
        about = {"model": str(folder), "text": str(data.folder)}
        about["thoughts"] = thought_lengths(config.thinking)
        print("\n" + thoughts.thoughts_shown(found, args.show, run and run / PAGE, about))
    if run:
        files.write_json(
            run / "evaluation.json",
            {
                "checkpoint": folder.name,
                "environment": files.environment(str(placement)),
                "settings": config.to_json(),
                "score": dataclasses.asdict(score),
            },
        )
        print(f"\nwritten to {run / 'evaluation.json'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `evaluate`."""
    return cli.main(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
