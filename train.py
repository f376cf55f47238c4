"""Train a language model to think before it speaks (Quiet-STaR, arXiv:2403.09629).

    python train.py                                    the bundled model and text, on a laptop
    python train.py --data owm --thoughts 16           Mistral-7B on OpenWebMath, as published
    python train.py --objective plain --data NAME --weights weights/NAME    next-token training
    python train.py --objective star                   STaR: sums with scratchpads, on a laptop
    python train.py --resume runs/NAME                 go on from its last checkpoint

--data is a folder made by `python -m qs.data prepare`, --weights a folder in the layout of Hugging
Face, Mistral or Quiet-STaR, or a run. Everything a run makes is in its folder under runs/: settings
(config.json), a line for each step (log.jsonl), checkpoints (step_*/), results (results.json) and
what it thought (thoughts.html).
Ctrl-C finishes the step, saves and says how to go on. In brackets: the value that a preset gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qs import cli, files
from qs.cli import Parser, parse
from qs.config import Config
from qs.data.dataset import resolve_data
from qs.evaluation.heldout import read_score, table
from qs.model import weights
from qs.star.run import StarRun, Stopped, rounds_table
from qs.training import distributed
from qs.training.trainer import Run


def settings(argv: list[str]) -> tuple[Config | None, Path | None]:
    """The command line: new settings, or the run folder to resume.

    Raises:
        ValueError: a setting is unknown, out of range, or given beside --resume.
    """
    parser = Parser("train.py", __doc__)
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on with, as it was set")
    if any(arg == "--resume" or arg.startswith("--resume=") for arg in argv):
        given, others = parser.parse_known_args(argv)
        if others:
            raise ValueError(
                f"--resume takes every setting from {given.resume}/config.json; drop {others[0]}"
            )
        return None, Path(given.resume)
    return parse(argv, parser), None


@contextlib.contextmanager
def stopping(run: Run | StarRun) -> Iterator[None]:
    """SIGINT and SIGTERM ask the run to stop after its step; a second one ends it at once."""

    def ask_to_stop(number: int, frame: Any) -> None:
        run.stop = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask_to_stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def bootstrap(folder: Path | None, config: Config) -> int:
    """STaR: rounds of rationales and training. Returns the exit status."""
    run = StarRun(folder, config, f"{time.strftime('%Y%m%d-%H%M%S')}-star-{config.star.task}")
    try:
        with stopping(run):
            rounds = run.go()
    except Stopped:
        print(f"\nstopped by {run.stop.name}; what is finished is kept")
        print(f"go on with: python train.py --resume {run.folder}")
        return 128 + run.stop
    path = run.folder / "results.json"
    others = files.read_json(path) if path.is_file() else {}  # evaluate.py writes there too
    files.write_json(path, others | {"rounds": rounds})
    print("\n" + "\n".join(rounds_table(rounds)))
    print(f"\nrun folder: {run.folder} (settings, log.jsonl, rationales in round_*/, checkpoint)")
    return 0


def train(argv: list[str]) -> int:
    """Build, train, evaluate, report. Returns the exit status."""
    config, folder = settings(argv)
    config = config or files.read_config(folder)
    if config.run.objective == "star":
        return bootstrap(folder, config)
    if folder is not None:
        start = files.newest_step(folder)
        before = read_score(folder / "before.json")
        run = Run(folder, config, start)
        run.restore(start)
        run.say(f"resume  {start}: {run.state.step} of {config.run.steps} steps done")
    else:
        resolve_data(config.run.data)  # named first: its commands are the longer wait
        start = weights.resolve(config.run.weights)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{config.run.objective}-{Path(config.run.data).name}"
        run = Run(Path(config.run.out) / name, config, start)
        before = run.begin(name)
    run.say(f"run     {run.folder}")
    with stopping(run):
        run.go()
    done = f"{run.state.step} of {config.run.steps} steps"
    if run.asked_to_stop():
        number = run.stop or signal.SIGTERM  # of this process, or of another one
        again = f"go on with: python train.py --resume {run.folder}"
        run.say(f"stopped by {number.name} after {done}, saved; {again}")
        return 128 + number
    after = run.evaluate("after")
    scores = {"before": before, "after": after}
    results = {name: score and dataclasses.asdict(score) for name, score in scores.items()}
    run.add_results(results | {"skipped": run.state.skipped})
    run.show(3)
    run.say("\n" + table(before, after))
    if run.state.skipped:
        run.say(f"{run.state.skipped} steps were skipped: their loss or gradient was not finite")
    run.say(
        f"\nrun folder: {run.folder} (settings, log.jsonl, checkpoint, results.json, thoughts.html)"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `train`."""
    again = "interrupted; go on from the last checkpoint, if there is one, with --resume"
    try:
        return cli.main(train, argv, again)
    finally:
        distributed.finish()


if __name__ == "__main__":
    sys.exit(main())
