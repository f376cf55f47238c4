"""Measure a model with and without its thoughts, and read what it thought.

    python evaluate.py runs/NAME                       held-out text of the run's own data
    python evaluate.py runs/NAME --show 5              and the tokens that thoughts helped and hurt
    python evaluate.py runs/NAME --thoughts 4          another thought length than in training
    python evaluate.py weights/NAME --data NAME        any checkpoint, any prepared data

Results are printed and written to evaluation.json in the run folder (for a folder that is no run,
nothing is written). NLL is in nats a token, one thought sampled before every token.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from qs import checkpoint, weights
from qs.build import STORED, check_fits, choose_placement, load
from qs.config import Config
from qs.data import resolve as resolve_data
from qs.flags import Parser
from qs.model_config import read_config, read_settings
from qs.report import environment, score_lines, told
from qs.shards import TokenDataset, sequential
from qs.tasks import Helped, most_helped, text_score
from qs.tokenizer import Tokenizer
from qs.training import step_generator


def settings(argv: list[str]) -> argparse.Namespace:
    """The command line; a flag that is not given takes the run's own setting."""
    parser = Parser("evaluate.py", __doc__)
    parser.add_argument("model", help="a run, a checkpoint, or a name in weights/")
    parser.add_argument("--data", help="prepared data, or its name in data/")
    parser.add_argument("--rows", type=int, default=32, help="held-out rows to read [32]")
    parser.add_argument("--thoughts", type=int, help="n: tokens in one thought")
    parser.add_argument("--sample-temperature", type=float, help="of thoughts; 0 is greedy")
    parser.add_argument("--seq", type=int, help="T: tokens in a row")
    parser.add_argument("--seed", type=int, help="seed of the thoughts")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--show", type=int, default=0, help="tokens helped and hurt most to show")
    args = parser.parse_args(argv)
    if args.rows < 1 or args.show < 0:
        raise ValueError(
            f"--rows is at least 1 and --show at least 0, got {args.rows}, {args.show}"
        )
    return args


def merged(args: argparse.Namespace, folder: Path, run: Path | None) -> Config:
    """The run's settings (or the checkpoint's own), changed by the flags that were given."""
    config = checkpoint.read_config(run) if run else Config()
    stored = {} if run else read_settings(folder) or {}

    def given(*names: str) -> dict[str, object]:
        return {n: getattr(args, n) for n in names if getattr(args, n) is not None}

    thought = {key: stored[key] for key in (*STORED, "thoughts") if key in stored}
    thought |= given("thoughts", "sample_temperature") | {"beta": 0.0, "ahead": 1}
    changed = {"objective": "quiet", "device": args.device} | given("data", "seq", "seed")
    return dataclasses.replace(
        config,
        thought=dataclasses.replace(config.thought, **thought),
        run=dataclasses.replace(config.run, **changed),
    )


def show(found: list[Helped], tokenizer: Tokenizer, title: str) -> None:
    """Print tokens with the thought that came before them."""
    print(f"\n{title}")
    for item in found:
        before, target, thought = (
            tokenizer.decode([i for i in ids if i not in (tokenizer.bos_id, tokenizer.eos_id)])
            for ids in (item.context, [item.target], item.thought)
        )
        print(f"  {item.gain:+7.3f} nats  w {item.weight:+.2f}  ...{before!r} -> {target!r}")
        print(f"                thought {thought!r}")


def evaluate(argv: list[str]) -> int:
    """Load, measure, report. Returns the exit status."""
    args = settings(argv)
    folder = weights.resolve(args.model)
    run = folder.parent if (folder / checkpoint.TRAINER).is_file() else None
    if run is None and args.data is None:
        raise ValueError(f"{folder} is no run, so give --data: a name in data/ or a folder")
    config = merged(args, folder, run)
    placement = choose_placement(config.run)
    data = TokenDataset(resolve_data(config.run.data), "heldout")
    check_fits(read_config(folder), Tokenizer.load(folder), config, folder)
    quiet, tokenizer = load(folder, config.thought, placement, config.run.seed)
    data.check_tokenizer(tokenizer)
    print(f"thought {config.thought.thoughts} tokens, in rows of {config.run.seq}")
    print(f"model   {folder}\ndata    {data.folder}: {data.tokens:,} held-out tokens")
    print(f"device  {placement}")
    batches = list(sequential(data, config.run.seq, config.run.batch, args.rows))

    def bar(label: str) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in tqdm(batches, desc=label, leave=False):
            yield batch.tokens.to(placement.device), batch.documents.to(placement.device)

    generator = step_generator(config.run.seed, 0)
    score = text_score(quiet, bar("held-out text"), generator)
    print("\n" + "\n".join(score_lines(score)))
    if args.show:
        generator = step_generator(config.run.seed, 0)  # the same thoughts again
        best, worst = most_helped(quiet, bar("thoughts"), generator, args.show)
        show(best, tokenizer, "tokens that their thoughts helped most")
        show(worst, tokenizer, "tokens that their thoughts hurt most")
    if run:
        checkpoint.write_json(
            run / "evaluation.json",
            {
                "checkpoint": folder.name,
                "environment": environment(str(placement)),
                "settings": config.to_json(),
                "rows": args.rows,
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
