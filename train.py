"""Train a language model to think before it speaks (Quiet-STaR, arXiv:2403.09629).

    python train.py                                    the bundled model and text, on a laptop
    python train.py --preset demo                      the same in half a minute, for a first look
    python train.py --data owm --thoughts 16           Mistral-7B on OpenWebMath, as published
    python train.py --objective plain --data NAME --weights weights/NAME    next-token training
    python train.py --objective star                   STaR: sums with scratchpads, on a laptop
    python train.py --resume runs/NAME                 go on from its last checkpoint
    python train.py --data owm --plan 80GB,128GB       memory and time on such a machine, not run

--data is a folder made by `python -m qs.data prepare`, --weights a folder in the layout of Hugging
Face, Mistral or Quiet-STaR, or a run. Everything a run makes is in its folder under runs/: settings
(config.json), machine and versions (run.json), a line for each step (log.jsonl), checkpoints
(step_*/), results (results.json) and what it thought (thoughts.html).
Ctrl-C finishes the step, saves and says how to go on. In brackets: the value that a preset gives.
"""

from __future__ import annotations

if __name__ == "__main__":  # before PyTorch, which takes a second
    from qs.interrupts import end_quietly

    end_quietly()

import contextlib
import dataclasses
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from qs import cli, files, output
from qs.bench.plan import plan_table
from qs.cli import Parser, parse
from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import DATA_DOWNLOADS, resolve_data
from qs.evaluation.heldout import HeldoutScore, heldout_score, read_score, run_scores
from qs.evaluation.page import PAGE, PAGE_ROWS, write_thoughts
from qs.evaluation.score_tables import closing_tables
from qs.evaluation.thoughts import read_thoughts
from qs.locks import LOCK, hold
from qs.model import folders
from qs.star.records import round_records, rounds_table
from qs.star.run import StarRun, Stopped
from qs.tables import Table, terminal
from qs.training import distributed
from qs.training.heartbeat import AGAIN
from qs.training.records import bar_text, collapse_warning
from qs.training.trainer import Trainer

STOPPING = "finishing this step, then saving; again to quit without saving"


def train(argv: list[str]) -> int:
    """Load, measure, train, measure, report, alone in the run folder. Returns the exit status."""
    with contextlib.ExitStack() as held, distributed.lost_ranks_told():
        return go(argv, held)


def go(argv: list[str], held: contextlib.ExitStack) -> int:
    """As `train`, which lets go what is `held` meanwhile."""
    config, folder, sizes = settings(argv)
    if sizes is not None:
        print(terminal(plan_table(config, sizes)))
        return 0
    if folder and (tables := closing(config, folder)):
        print(
            f"{terminal(*tables)}\n\n{folder} is finished: nothing is left to do; {longer(folder)}"
        )
        return 0
    if config.run.bootstraps:
        return bootstrap(config, folder, held)

    with cli.leaving(NOTHING_NEW if folder else NOTHING):
        if folder:
            enter(folder, held)
            files.newest_step(folder)  # one that was stopped before it saved has nothing else
            before = score_before(folder)
        trainer = load(config, folder)
        if folder is None:
            enter(trainer.folder, held)
            before = measure(trainer, "before")
            if trainer.ranks.first:
                files.write_json(trainer.folder / BEFORE, before and dataclasses.asdict(before))
    trainer.say(f"run     {trainer.folder}")

    with stopping(trainer, trainer.ranks.first), bar_of(trainer) as bar:
        while not trainer.finished and not trainer.asked_to_stop:
            record = trainer.step()
            bar.set_postfix_str(bar_text(record), refresh=False)
            bar.update()
            if trainer.due:
                trainer.save()
        trainer.save()

    if trainer.asked_to_stop:
        number = trainer.stop or signal.SIGTERM  # of this process, or of another one
        done = f"{trainer.state.step} of {config.run.steps} steps"
        trainer.say(f"stopped by {number.name} after {done}, saved; {go_on(trainer.folder)}")
        return 128 + number
    report(trainer, before, measure(trainer, "after"))
    return 0


SMALL, SLOW = 10**8, 1e-6  # parameters, and a learning rate at which so few hardly move
BEFORE = "before.json"  # the score before training, for the table after a resume
BAR = "{n_fmt}/{total_fmt}{postfix}, {remaining} left {bar}"  # tqdm's names
# what a signal before the first step leaves
NOTHING = "there was no step yet: nothing is saved; start it again"
NOTHING_NEW = "there was no step since the last checkpoint: go on from it with --resume"


def settings(argv: list[str]) -> tuple[Config, Path | None, str | None]:
    """The command line: settings, the run folder if one is resumed, and what --plan is given.

    Raises:
        ValueError: a setting is unknown, out of range, or given beside --resume.
    """
    usage = "python train.py [--preset NAME] [--SETTING VALUE ...] | --resume RUN"
    parser = Parser("train.py", __doc__, usage=usage)
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on with, as it was set")
    parser.add_argument(
        "--plan",
        nargs="?",
        const="",
        metavar="SIZES",
        help="say how much memory and time the run would take, on this machine or on one with a "
        "GPU of such sizes of device and host memory: 80GB,128GB (10^9 bytes; shown in GiB, 2^30)",
    )
    if any(arg == "--resume" or arg.startswith("--resume=") for arg in argv):
        args, others = parser.parse_known_args(argv)
        if others:
            raise ValueError(
                f"--resume takes every setting from {args.resume}/config.json; drop {others[0]}; "
                f"{longer(Path(args.resume))}"
            )
        return files.read_config(Path(args.resume)), Path(args.resume), args.plan
    return parse(argv, parser), None, parser.parse_args(argv).plan


def go_on(run: Path) -> str:
    """What to do where a run was stopped."""
    return f"go on with: {cli.typed('train.py', '--resume', run)}"


def longer(run: Path) -> str:
    """What to do where a run shall go on otherwise than it was set."""
    config = files.read_config(run)
    begin = cli.typed("train.py", "--weights", run)
    if config.run.objective != RunConfig.objective:
        begin += f" --objective {config.run.objective}"
    if config.run.bootstraps:  # it has read no text
        begin += f" --task {config.star.task}{' --no-rationalize' * (not config.star.rationalize)}"
    else:
        begin += f" --data {shlex.quote(config.run.data)}"
    for name in ("mix_weight", "mix_space", "end"):  # without which its thoughts are others
        if (value := getattr(config.thinking, name)) != getattr(ThoughtConfig(), name):
            begin += f" --{name.replace('_', '-')} {value}"
    return f"to train its model on, longer or otherwise, begin a new run: {begin} --steps N ..."


def closing(config: Config, folder: Path) -> list[Table]:
    """The tables of a run of which nothing is left to do, measuring included; none of others."""
    results = files.read_results(folder)
    if config.run.bootstraps:
        rounds = round_records(folder, config.star.rounds)
        done = "rounds" in results and rounds and rounds[-1]["round"] == config.star.rounds
        return [rounds_table(rounds)] if done else []
    if "after" not in results or not files.finished(folder):
        return []
    if folders.damage_of_step(files.newest_step(folder)):  # its steps are trained again
        return []
    return closing_tables(*run_scores(folder))


def load(config: Config, folder: Path | None) -> Trainer:
    """A new run, or the one in `folder` where it stands."""
    if folder is not None:
        trainer = Trainer(config, None, folder)
        trainer.resume()
        return trainer
    missing, start = [], None
    try:
        start = folders.resolve(config.run.weights)
    except ValueError as error:
        missing.append(str(error))
    try:  # both are named at once; the data is prepared with the model's tokenizer
        resolve_data(config.run.data)
    except ValueError as error:
        if config.run.data not in DATA_DOWNLOADS:  # most likely a typo, in which no model is meant
            raise
        missing.append(str(error))
    if missing or start is None:
        raise ValueError("\n".join(missing))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{config.run.objective}-{Path(config.run.data).name}"
    trainer = Trainer(config, start, Path(config.run.out) / name)
    trainer.begin()
    size, rate = sum(p.numel() for p in trainer.quiet.parameters()), config.optim.lr
    if size < SMALL and 0 < rate <= SLOW:
        trainer.say(
            f"warning: --lr {rate:g} is for billions of parameters: {size:,} hardly move; try "
            "--lr 3e-5, or begin from --preset tiny"
        )
    return trainer


def enter(run: Path, held: contextlib.ExitStack) -> None:
    """Lock a run folder for this process, or the first of several, and tidy it."""
    if distributed.leads():
        held.enter_context(hold(run / LOCK))
        files.remove_leftovers(run)


def score_before(run: Path) -> HeldoutScore | None:
    """The score that a run began with; none where a loop of one's own began it."""
    path = run / BEFORE
    if path.exists():
        return read_score(path)
    if distributed.leads():
        why = "no such file, as of a run that train.py did not begin; going on without that score"
        print(f"{path}: {why}", file=sys.stderr)
    return None


def measure(trainer: Trainer, label: str) -> HeldoutScore | None:
    """Score on held-out text, with and without thoughts; None if there is nothing to do."""
    if not trainer.config.run.eval_rows or not trainer.heldout.tokens:
        return None
    bar = f"held-out text, {label}" if trainer.ranks.first else ""
    score = heldout_score(trainer.quiet, trainer.heldout, trainer.tokenizer, trainer.config, bar)
    if score.unknown:
        trainer.say(f"warning: {label} training {score.unknown}")
    return score


def bar_of(trainer: Trainer) -> Any:
    """The progress bar."""
    return output.progress(
        None,
        "training",
        trainer.config.run.steps,
        unit=" steps",
        initial=trainer.state.step,
        shown=trainer.ranks.first,
        form=BAR,
    )


def stopping(run: Trainer | StarRun, first: bool = True) -> contextlib.AbstractContextManager:
    """A signal asks the run to stop after its step; a second one ends it at once.

    `first`: whether this process says so, of several that are sent it together.
    """

    def ask_to_stop(number: int, frame: Any) -> None:
        run.stop = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
        if first:
            output.tell(f"\n{run.stop.name}: {STOPPING}")

    return cli.on_signals(ask_to_stop)


def report(trainer: Trainer, before: HeldoutScore | None, after: HeldoutScore | None) -> None:
    """Write results, show what was thought, print the closing table."""
    state, say = trainer.state, trainer.say
    scores = {"before": before, "after": after}
    results = {name: score and dataclasses.asdict(score) for name, score in scores.items()}
    if trainer.ranks.first:
        files.add_results(trainer.folder, results | {"skipped": state.skipped})
    show(trainer, 3)
    say("\n" + terminal(*closing_tables(before, after)))
    if trainer.ranks.first and (warning := collapse_warning(files.read_log(trainer.folder))):
        print(warning)
    if state.skipped:
        say(f"{state.skipped} steps were skipped: their loss or gradient was not finite")
    page = f", {PAGE}" * (trainer.folder / PAGE).is_file()
    say(f"\nrun folder: {trainer.folder} (settings, log.jsonl, checkpoint, results.json{page})")


def show(trainer: Trainer, count: int) -> None:
    """Print what was thought in a few passages of held-out text, and write the HTML page."""
    config, heldout = trainer.config, trainer.heldout
    rows = min(PAGE_ROWS, config.run.eval_rows)
    if not rows or not heldout.tokens or not config.run.thinks:
        return
    passages = read_thoughts(trainer.quiet, heldout, trainer.tokenizer, config, rows)
    about = {
        "model": f"{config.run.weights}, {trainer.state.step} steps of {config.run.title}",
        "text": f"{heldout.folder}, the first {rows} rows of the held-out split",
        "thoughts": config.thinking.lengths,
    }
    if trainer.ranks.first:
        path = write_thoughts(trainer.folder, about, passages)
        print(f"\n{passages.examples_text(count)}\n\nwhat it thought, as a page: {path}")


def bootstrap(config: Config, folder: Path | None, held: contextlib.ExitStack) -> int:
    """STaR: rounds of rationales and training. Returns the exit status."""
    if folder:
        enter(folder, held)
    run = StarRun(folder, config, f"{time.strftime('%Y%m%d-%H%M%S')}-star-{config.star.task}")
    if folder is None:
        enter(run.folder, held)
    try:
        with stopping(run):
            rounds = run.go()
    except Stopped:
        print(f"\nstopped by {run.stop.name}; what is finished is kept\n{go_on(run.folder)}")
        return 128 + run.stop
    files.add_results(run.folder, {"rounds": rounds})
    print("\n" + terminal(rounds_table(rounds)))
    print(f"\nrun folder: {run.folder} (settings, log.jsonl, rationales in round_*/, checkpoint)")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `train`."""
    try:
        return cli.main(train, argv, AGAIN)
    finally:
        distributed.finish()


if __name__ == "__main__":
    sys.exit(main())
