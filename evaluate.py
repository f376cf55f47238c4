"""Measure a model with and without its thoughts, and read what it thought.

    python evaluate.py score runs/NAME --show 3               held-out text, and what it thought
    python evaluate.py tasks runs/NAME gsm8k,commonsense_qa   question sets
    python evaluate.py text runs/NAME                         where thinking helps and hurts
    python evaluate.py generate runs/NAME "Q: ..." --show-thoughts
    python evaluate.py controls runs/NAME --seeds 3           what else could explain the gain
    python evaluate.py ladder runs/NAME --seeds 3             one change a row, until RLP
    python evaluate.py rounds RUN RUN ...                     runs of STaR by round and difficulty
    python evaluate.py compare MODEL MODEL ...                STaR, Quiet-STaR, others side by side
    python evaluate.py plot runs/NAME                         pictures

A model is a run, a folder in the layout of Hugging Face, Mistral or Quiet-STaR, or a name in
weights/; `python evaluate.py MODEL` is short for `score MODEL`. Each command has its own --help.
"""

if __name__ == "__main__":  # before PyTorch, which takes a second
    from qs.interrupts import end_quietly

    end_quietly()

import argparse
import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qs import cli, files, output
from qs.cli import Parser, add_settings, chosen
from qs.config import RunConfig, ThoughtConfig
from qs.data.prompts import prompts_of
from qs.data.question_sets import SETS, read_questions, task_list
from qs.environment import environment
from qs.evaluation import effects, exam_results, question_sets
from qs.evaluation.exam_results import Exam
from qs.evaluation.hard_tokens import by_decile, measure_hard_tokens, token_table
from qs.evaluation.heldout import heldout_data, heldout_score, settings_told, thinking_told
from qs.evaluation.page import PAGE_ROWS, write_thoughts
from qs.evaluation.score_tables import score_tables
from qs.evaluation.thoughts import read_thoughts
from qs.inference.decoding import Decoding, check_effect
from qs.inference.generate import Stream
from qs.inference.shown import show
from qs.locks import hold, make_folder
from qs.model import folders, weights
from qs.presets import ANY_TEXT
from qs.quietstar.load import Opened, open_model
from qs.settings import check_limits, setting
from qs.studies.compare import Comparable, compare_models
from qs.studies.control_runs import CONTROLS_PAGE, controls_missing, run_controls, told_file
from qs.studies.controls import Selection, add_selection, keep_comments
from qs.studies.ladder import KEYS, LADDER_PAGE, RUNGS, run_ladder, rung_list
from qs.studies.plots import draw_rounds, draw_run
from qs.studies.star_rounds import ABOUT_ROUNDS, arm_table, read_arms
from qs.tables import Table, escaped, markdown, results_page, terminal, words

ANSWERS_LOCK, CONTROLS_LOCK = ".answers.lock", ".controls.lock"  # another reads a run that trains
TRAIN = Path(__file__).with_name("train.py")


@dataclass(frozen=True)
class Flags:
    """What commands are told beside the settings of a model, of decoding and of question sets."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: CUDA where there is one")
    rows: int | None = setting(None, "rows to read at most; else the run's, or 32", least=1)
    show: int = setting(0, "passages to show with their thoughts", least=0)
    questions: str = setting("data", "folder of the question sets", named=True)
    limit: int | None = setting(
        None, "questions of a set, or sums a length; else all (100)", least=1
    )
    against: str | None = setting(None, "folder or file of another model's answers", named=True)
    out: str | None = setting(
        None, "folder of results.json; else the run or runs/MODEL", named=True
    )
    markdown: str | None = setting(None, "file that tables are written to as well", named=True)
    show_thoughts: bool = setting(False, "a line for each token, with the thought before it")
    seeds: int = setting(1, "how many to train and measure with", least=1, most=1000)
    jobs: int = setting(1, "trainings at once", least=1, most=1000)
    on: Comparable = setting("world", "whose problems")
    problems: int = setting(200, "how many; sums: of each length", least=2)

    def __post_init__(self) -> None:
        check_limits(self)


def score(args: argparse.Namespace) -> None:
    """Score held-out text with and without thoughts: answers, where they are known, and all tokens.

    NLL is in nats a token, one thought sampled before each, where the model was trained to think or
    --thoughts says so. Of a run, evaluation.json keeps it; measured otherwise than the run does at
    its end, a file whose name tells how.
    """
    opened = open_by(args)
    folder, run, config, placement, quiet, tokenizer = opened
    data = heldout_data(config.run, tokenizer)
    print(f"thought {thinking_told(config)}")
    print(f"model   {folder}\ndata    {data.folder}: {data.tokens:,} held-out tokens")
    print(f"device  {placement}")
    result = heldout_score(quiet, data, tokenizer, config, "held-out text")
    told = settings_told(config, run, folder)
    print("\n" + terminal(*score_tables(result)))
    if args.show and config.run.thinks:
        rows = min(config.run.eval_rows, PAGE_ROWS)
        passages = read_thoughts(quiet, data, tokenizer, config, rows)
        about = {"model": str(folder), "text": str(data.folder)}
        about["thoughts"] = config.thinking.lengths
        print("\n" + passages.examples_text(args.show))
        if run:
            print(f"\nwhat it thought, as a page: {write_thoughts(run, about, passages, told)}")
    if run:
        facts = {"checkpoint": folder.name, "environment": environment(str(placement))}
        facts |= {"settings": config.to_json(), "score": dataclasses.asdict(result)}
        files.write_json(path := run / f"evaluation{told}.json", facts)
        print(f"\nwritten to {path}")


def tasks(args: argparse.Namespace) -> None:
    """Ask question sets, with and without thoughts: probability of gold answers, decoded answers.

    With --votes, chains of thought and their majority. Written to results.json and, a line for each
    question, beside it: the same command after an interruption does the rest.
    """
    effects.check_exam(vars(args))
    asked = {x: read_questions(x, "heldout", args.questions, args.limit) for x in args.tasks}
    opened = open_by(args, reads=False)
    thinks = effects.asked_to_think(vars(args), opened, "samples")
    n, seed = opened.config.thought.thoughts if thinks else 0, opened.config.run.seed
    own = {"model": str(opened.folder), "weights": weights.digest(opened.folder)}
    own |= {"thoughts": n, "seed": seed}
    exams = [Exam(task, **chosen(args, Exam) | own) for task in asked]
    folder = args.against and Path(args.against)
    others = [folder and exam_results.answers_of(x, folder, asked[x.task]) for x in exams]
    out, environment = begin_results(args, opened)
    tables: list[Table] = []
    with hold(out / ANSWERS_LOCK):
        for exam, other in zip(exams, others, strict=True):
            questions = asked[exam.task]
            summary = question_sets.run(exam, opened.quiet, opened.tokenizer, questions, out)
            facts, made = exam_results.exam_report(exam, summary, other)
            facts["environment"] = environment
            files.add_results(out, {exam.file: facts}, "exams")
            print("\n" + terminal(*made))
            tables += made
    print(f"\nwritten to {out / files.RESULTS} and, a line for each question, beside it")
    title, made = f"{opened.folder} on {', '.join(args.tasks)}", f"Made with {words(environment)}."
    write_page(args, results_page(title, args.line, escaped(made) + "\n", tables))


def text(args: argparse.Namespace) -> None:
    """Sort the tokens of held-out text by difficulty: where thinking helps, hurts, and pays.

    Written to results.json; of a run measured otherwise than it is, by a name that tells how.
    """
    opened = open_by(args)
    if not opened.config.run.thinks:
        why = f"was trained with --objective {opened.config.run.objective}"
        why = why if opened.run else "does not unasked: give --thoughts N"
        raise ValueError(f"text expects a model that thinks, and {args.model} {why}")
    out, environment = begin_results(args, opened)
    facts, tables = measure_hard_tokens(opened)
    name = f"text{settings_told(opened.config, opened.run, opened.folder)}"
    files.add_results(out, {name: facts | {"environment": environment}})
    print(f"\n{terminal(*tables)}\n\nwritten to {out / files.RESULTS}")
    made = escaped(f"Made with {words(environment)}.") + "\n"
    write_page(args, results_page(f"{opened.folder} on text", args.line, made, tables))


def generate(args: argparse.Namespace) -> None:
    """Go on from prompts, token by token, with a thought before each.

    A model that was not trained to think does where --thoughts or --think-when says so.
    """
    decoding = Decoding(**chosen(args, Decoding))
    check_effect(decoding)
    opened, stream = open_by(args, reads=False), None
    if "think_when" not in args:
        of_thoughts = "think_temperature", "fixed_weight"
        thinks = effects.asked_to_think(vars(args), opened, *of_thoughts)
        decoding = dataclasses.replace(decoding, think_when="always" if thinks else "never")
    for prompt in prompts_of(args.prompt):
        ids = opened.tokenizer.prompt(prompt)
        stream = Stream(opened.quiet, [ids], decoding, opened.config.run.seed)
        show(stream, opened.tokenizer, prompt, args.show_thoughts)
    if stream is None:
        raise ValueError(f"{args.prompt}: expected a prompt in each line, found no line")


def controls(args: argparse.Namespace) -> None:
    """Train what a run on text of the bundled kind is compared with, and measure all of it.

    Written to controls.json and controls.md in the run; what is left out, names of files tell.
    """
    some = Selection(args.arms, args.lengths)
    with hold(files.run_folder(args.run) / CONTROLS_LOCK):
        page = run_controls(args.run, some, args.seeds, args.rows, args.jobs, TRAIN, args.line)
    print(f"\n{page}\nwritten to {told_file(args.run / CONTROLS_PAGE, some)}")
    write_page(args, page)


def ladder(args: argparse.Namespace) -> None:
    """Train a run's heirs, one change a row until RLP: ladder.md of the run, after every seed.

    Of text of the bundled kind. Rows and seeds that were trained before stay in it.
    """
    with hold(files.run_folder(args.run) / CONTROLS_LOCK):
        page = run_ladder(args.run, args.only, args.seeds, args.jobs, TRAIN, args.line)
    print(f"\n{page}\nwritten to {args.run / LADDER_PAGE}")
    write_page(args, page)


def rounds(args: argparse.Namespace) -> None:
    """Set runs of STaR side by side, round by round; pictures go to plots/ of the first run."""
    arms = read_arms(args.runs)
    tables = [arm_table(arm) for arm in arms]
    print("\n".join([ABOUT_ROUNDS, *(f"{terminal(table)}\n" for table in tables)]))
    for path in draw_rounds(arms, args.runs[0] / "plots"):
        print(f"written to {path}")
    write_page(args, results_page("STaR, round by round", args.line, ABOUT_ROUNDS, tables))


def compare(args: argparse.Namespace) -> None:
    """Set models side by side on problems whose answers can be worked out."""
    table = compare_models(args.models, args.on, args.problems, args.device)
    print(f"\n{terminal(table)}")
    write_page(args, markdown(table))


def plot(args: argparse.Namespace) -> None:
    """Draw a run: training, thought lengths, hard tokens (needs pip install -e '.[plot]')."""
    opened = open_by(args)
    if opened.run is None:
        raise ValueError(f"{args.model} is no run: plot draws what a run folder holds")
    deciles = by_decile(token_table(opened)) if opened.config.run.thinks else []
    for path in draw_run(opened.run, deciles):
        print(f"written to {path}")
    if controls_missing(opened.run):
        print(f"no thought-length curve: {cli.typed('evaluate.py controls', opened.run)} makes it")


def open_by(args: argparse.Namespace, reads: bool = True) -> Opened:
    """Load the model with the settings that flags give; `reads` as of `open_model`."""
    names = ("thoughts", "sample_temperature", "seed", "data", "seq", "compile")
    own = {name: getattr(args, name) for name in names if name in args}
    settings = own if reads else ANY_TEXT | own
    opened = open_model(args.model, reads, device=args.device, eval_rows=args.rows, **settings)
    return effects.as_it_reads(vars(args), opened) if reads else opened


def begin_results(args: argparse.Namespace, opened: Opened) -> tuple[Path, dict[str, object]]:
    """Say what is measured; the folder of results.json, and what it is made with."""
    out = Path(args.out) if args.out else opened.run or Path("runs") / opened.folder.name
    print(f"model   {opened.folder}\ndevice  {opened.placement}\nanswers {out}")
    make_folder(out)
    return out, environment(str(opened.placement))


def write_page(args: argparse.Namespace, page: str) -> None:
    """Write Markdown where --markdown says; what a person added there is kept."""
    if args.markdown:
        keep_comments(Path(args.markdown), page)
        print(f"written to {args.markdown}")


def command_line() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands by name; a command has the flags that it reads."""
    own = "the model's own"
    model, text_read = Parser("", add_help=False), Parser("", add_help=False)
    model.add_argument("model", metavar="MODEL", help="a run, a checkpoint, or a name in weights/")
    section = model.add_argument_group("model")
    add_settings(section, ThoughtConfig, "thoughts", shown=own)
    add_settings(section, RunConfig, "seed", shown=own)
    add_settings(section, Flags, "device")
    section = text_read.add_argument_group("held-out text")
    add_settings(section, Flags, "rows")
    add_settings(section, RunConfig, "data", "seq", "compile", shown=own)
    add_settings(section, ThoughtConfig, "sample_temperature", shown=own)

    top = Parser("python evaluate.py", __doc__)
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(command: Callable[..., None], *flags: str, parents: Sequence[Parser] = ()) -> Parser:
        manual = inspect.getdoc(command)
        added = commands.add_parser(command.__name__, description=manual, parents=parents)
        added.set_defaults(command=command)
        if flags:
            add_settings(added, Flags, *flags)
        return added

    add(score, "show", parents=[model, text_read])
    asked = add(tasks, "questions", "limit", "against", "out", "markdown", parents=[model])
    asked.add_argument("tasks", type=task_list, metavar="LIST", help=f"some of {SETS}")
    add_settings(asked, Exam, "samples", "votes", "temperature", "max_tokens", "batch")
    add(text, "out", "markdown", parents=[model, text_read])
    written = add(generate, "show_thoughts", parents=[model])
    written.add_argument("prompt", metavar="PROMPT", help="a text, a file of lines, or - (stdin)")
    add_settings(written, Decoding)
    selected = add(controls, "seeds", "jobs", "rows", "markdown")
    add_selection(selected)
    compared = add(ladder, "seeds", "jobs", "markdown")
    for parser in (selected, compared):
        parser.add_argument("run", metavar="RUN", type=Path, help="a finished run that thinks")
    compared.add_argument("--only", type=rung_list, default=RUNGS, metavar="LIST", help=KEYS)
    compared = add(rounds, "markdown")
    compared.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="runs of STaR")
    compared = add(compare, "on", "problems", "device", "markdown")
    compared.add_argument("models", metavar="MODEL", nargs="+", help="as for score")
    add(plot, parents=[model, text_read])
    return top, commands.choices


def evaluate(argv: list[str]) -> None:
    """Run a command; a model alone is scored.

    Raises:
        ValueError: there is no such command, or it does not read one of the flags.
    """
    top, commands = command_line()
    line = shlex.join(["python", "evaluate.py", *argv])
    for flag in (arg.partition("=")[0] for arg in argv):  # once, flags chose what to do
        if flag.startswith("--") and flag[2:] in commands:
            raise ValueError(f"{flag} is a command now: see python evaluate.py {flag[2:]} --help")
    if argv and argv[0] not in commands and not argv[0].startswith("-"):
        try:
            folders.find(argv[0])
        except ValueError as error:
            near = output.nearest(argv[0], commands)
            raise ValueError(f"{error}; or a command: {', '.join(commands)}{near}") from None
        argv = ["score", *argv]
    if argv and argv[0] in commands:  # its own parser complains in its own name
        args = commands[argv[0]].parse_args(argv[1:])
    else:
        args = top.parse_args(argv)
    vars(args).update(dataclasses.asdict(Flags(**chosen(args, Flags))), line=line)
    args.command(args)


def main(argv: list[str] | None = None) -> int:
    """Command line: `evaluate`."""
    return cli.main(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
