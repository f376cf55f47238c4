"""Measure a model with and without its thoughts, and read what it thought.

    python evaluate.py runs/NAME                       held-out text of the run's own data
    python evaluate.py runs/NAME --show 5              and what it thought, also as a page
    python evaluate.py runs/NAME --thoughts 4          another thought length than in training
    python evaluate.py weights/NAME --data NAME        any checkpoint, any prepared data
    python evaluate.py --controls runs/NAME --seeds 5  what else could explain the gain
    python evaluate.py --plot runs/NAME                pictures (needs pip install -e '.[plot]')

Results are printed and written to evaluation.json in the run folder (for a folder that is no run,
nothing is written). NLL is in nats a token, one thought sampled before every token.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from qs.plot import draw
from tqdm import tqdm

from qs import checkpoint, weights
from qs.build import STORED, Placement, check_fits, choose_placement, load
from qs.config import Config
from qs.controls import controls_page, keep_comments
from qs.data import resolve as resolve_data
from qs.flags import Parser
from qs.model_config import read_config, read_settings
from qs.quiet import QuietStar
from qs.records import shown
from qs.report import environment, score_lines, thought_lengths, thoughts_shown, told
from qs.rivals import CONTROLS, compare, jobs, train_all
from qs.run import PAGE, PAGE_ROWS
from qs.scores import heldout_score
from qs.shards import TokenDataset, sequential
from qs.tasks import by_decile, token_nlls
from qs.tokenizer import Tokenizer
from qs.training import step_generator


def settings(argv: list[str]) -> argparse.Namespace:
    """The command line; a flag that is not given takes the run's own setting."""
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
    args = parser.parse_args(argv)
    for name, least in (("rows", 1), ("show", 0), ("seeds", 1), ("jobs", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is at least {least}, got {value}")
    if sum(x is not None for x in (args.model, args.controls, args.plot)) != 1:
        raise ValueError("give one of: a model, --controls RUN, --plot RUN")
    return args


def merged(args: argparse.Namespace, folder: Path, run: Path | None) -> Config:
    """The run's settings (or the checkpoint's own), changed by the flags that were given."""
    config = checkpoint.read_config(run) if run else Config()
    stored = {} if run else read_settings(folder) or {}

    def given(*names: str) -> dict[str, object]:
        return {n: getattr(args, n) for n in names if getattr(args, n) is not None}

    thought = {key: stored[key] for key in (*STORED, "thoughts") if key in stored}
    thought |= given("thoughts", "sample_temperature") | {"beta": 0.0}
    kind = "pause" if config.run.objective == "pause" else "quiet"
    changed = {"objective": kind, "device": args.device} | given("data", "seq", "seed")
    changed["eval_rows"] = args.rows or config.run.eval_rows or 32
    return dataclasses.replace(
        config,
        thought=dataclasses.replace(config.thought, **thought),
        run=dataclasses.replace(config.run, **changed),
    )


def controls(args: argparse.Namespace) -> None:
    """Train what a run is compared with, unless it is there, and measure all of it."""
    run = Path(args.controls)
    todo = jobs(run, args.seeds)
    train_all(todo, Path(__file__).with_name("train.py"), args.jobs)
    rows = args.rows or checkpoint.read_config(run).run.eval_rows or 32
    tables = compare(run, args.seeds, rows)
    named = {title: [dataclasses.asdict(line) for line in lines] for title, lines in tables.items()}
    command = f"python evaluate.py --controls {run} --seeds {args.seeds} --rows {rows}"
    placement = str(choose_placement(checkpoint.read_config(run).run))
    results = {"command": command, "environment": environment(placement), "tables": named}
    checkpoint.write_json(run / CONTROLS, results)
    text = controls_page(tables, command, results["environment"])
    print("\n" + text)
    for path in filter(None, (run / "controls.md", args.markdown and Path(args.markdown))):
        keep_comments(path, text)
        print(f"written to {path}")


class Opened(NamedTuple):
    """A model that is ready, what it is to read, and where it came from."""

    folder: Path
    run: Path | None
    config: Config
    placement: Placement
    data: TokenDataset
    quiet: QuietStar
    tokenizer: Tokenizer


def open_model(args: argparse.Namespace, model: str) -> Opened:
    """Load a run or a checkpoint, and the held-out text it is evaluated on."""
    folder = weights.resolve(model)
    run = folder.parent if (folder / checkpoint.TRAINER).is_file() else None
    if run is None and args.data is None:
        raise ValueError(f"{folder} is no run, so give --data: a name in data/ or a folder")
    config = merged(args, folder, run)
    placement = choose_placement(config.run)
    data = TokenDataset(resolve_data(config.run.data), "heldout")
    check_fits(read_config(folder), Tokenizer.load(folder), config, folder)
    quiet, tokenizer = load(folder, config, placement)
    data.check_tokenizer(tokenizer)
    return Opened(folder, run, config, placement, data, quiet, tokenizer)


def plot(args: argparse.Namespace) -> None:
    """Pictures of a run: training, thought lengths, hard tokens."""
    _, run, config, placement, data, quiet, tokenizer = open_model(args, args.plot)
    if run is None:
        raise ValueError(f"{args.plot} is no run: --plot draws what a run folder holds")
    batches = list(sequential(data, config.run.seq, config.run.batch, config.run.eval_rows))
    device = placement.device
    pairs = (
        (b.tokens.to(device), b.documents.to(device))
        for b in tqdm(batches, "held-out text", leave=False)
    )
    found = token_nlls(quiet, pairs, step_generator(config.run.seed, 0))
    for path in draw(run, by_decile(*found)):
        print(f"written to {path}")
    if not (run / CONTROLS).is_file():
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
    folder, run, config, placement, data, quiet, tokenizer = open_model(args, args.model)
    print(f"thought {config.thought.thoughts} tokens, in rows of {config.run.seq}")
    print(f"model   {folder}\ndata    {data.folder}: {data.tokens:,} held-out tokens")
    print(f"device  {placement}")
    rows = config.run.eval_rows
    score = heldout_score(quiet, data, tokenizer, config, rows, "held-out text")
    print("\n" + "\n".join(score_lines(score)))
    if args.show:
        found = shown(quiet, data, tokenizer, config, min(rows, PAGE_ROWS))
        about = {"model": str(folder), "text": str(data.folder)}
        about["thoughts"] = thought_lengths(config.thinking)
        print("\n" + thoughts_shown(found, args.show, run and run / PAGE, about))
    if run:
        checkpoint.write_json(
            run / "evaluation.json",
            {
                "checkpoint": folder.name,
                "environment": environment(str(placement)),
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
        if (line := told(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    sys.exit(main())
