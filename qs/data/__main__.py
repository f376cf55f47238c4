"""Text to token shards, tokenizers, and generated text.

    python -m qs.data tokenizer  SOURCE... --out weights/NAME --vocab 4096
    python -m qs.data prepare    SOURCE... --out data/NAME --tokenizer weights/NAME
    python -m qs.data synthetic  --out data/raw/NAME --documents 200000
    python -m qs.data arithmetic --out data/raw/NAME --documents 200000

SOURCE is a file or a folder of .jsonl, .json (both JSON lines), either with .gz, .txt (one document
a file) or .parquet. synthetic and arithmetic write train.jsonl and heldout.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qs import cli
from qs.data import arithmetic, synthetic
from qs.data.dataset import Split
from qs.data.documents import DocumentReader
from qs.data.prepare import prepare_dataset
from qs.files import new_folder, write_json
from qs.model.tokenizer import train_tokenizer


def _parser() -> cli.Parser:
    parser = cli.Parser("python -m qs.data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tokenizer = commands.add_parser("tokenizer", help="train a sentencepiece tokenizer")
    tokenizer.set_defaults(run=_tokenizer)
    _add_sources(tokenizer)
    tokenizer.add_argument("--vocab", type=int, default=4096, help="number of tokens [4096]")
    tokenizer.add_argument(
        "--symbol", action="append", default=[], help="always a token of its own; may be repeated"
    )

    prepare = commands.add_parser("prepare", help="tokenize documents into shards")
    prepare.set_defaults(run=_prepare)
    _add_sources(prepare)
    prepare.add_argument("--tokenizer", required=True, help="folder with tokenizer.model")
    prepare.add_argument("--heldout", type=float, default=0.01, help="fraction held out [0.01]")
    prepare.add_argument(
        "--heldout-source",
        action="append",
        default=[],
        metavar="SOURCE",
        help="held out instead of a fraction; may be repeated",
    )
    prepare.add_argument("--workers", type=int, help="processes [one a core]")
    prepare.add_argument("--shard-tokens", type=int, default=100_000_000, help="at most [10^8]")
    prepare.add_argument("--seed", type=int, default=0, help="of the held-out draw [0]")
    prepare.add_argument("--overwrite", action="store_true", help="replace a dataset")

    text = commands.add_parser("synthetic", help="write text whose reasoning is often left out")
    text.set_defaults(run=_synthetic)
    text.add_argument("--out", type=Path, required=True, help="folder to make")
    _add_counts(text, tests=3_000)
    text.add_argument("--written", type=float, default=0.3, help="share with a working [0.3]")
    text.add_argument("--useful", type=float, default=0.5, help="share of these that help [0.5]")
    text.add_argument("--stories", type=float, default=1.0, help="weight of word problems [1]")

    sums = commands.add_parser("arithmetic", help="write sums with scratchpads")
    sums.set_defaults(run=_arithmetic)
    what = sums.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to make")
    what.add_argument("--symbols", action="store_true", help="print flags for `tokenizer` instead")
    _add_counts(sums, tests=500)
    sums.add_argument("--digits", type=int, default=arithmetic.KNOWN, help="of sums, at most [2]")
    sums.add_argument("--written", type=float, default=1.0, help="share that has its steps [1]")
    return parser


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument("sources", nargs="+", metavar="SOURCE")
    command.add_argument("--out", required=True, help="folder to make")
    command.add_argument(
        "--field",
        action="append",
        help="field with the text [text]; a+b joins two; repeat for alternatives",
    )


def _add_counts(command: argparse.ArgumentParser, tests: int) -> None:
    command.add_argument("--documents", type=int, default=200_000, help="to train on [200000]")
    command.add_argument("--tests", type=int, default=tests, help=f"held-out documents [{tests}]")
    command.add_argument("--seed", type=int, default=0, help="same seed, same text [0]")


def _tokenizer(args: argparse.Namespace) -> None:
    texts = DocumentReader(args.sources, args.field or ["text"])
    model = train_tokenizer(texts, args.out, args.vocab, symbols=args.symbol)
    print(f"{model.vocab_size:,} tokens\n{args.out}")


def _prepare(args: argparse.Namespace) -> None:
    prepare_dataset(
        args.sources,
        args.out,
        args.tokenizer,
        args.field or ["text"],
        args.heldout,
        args.workers,
        args.shard_tokens,
        args.seed,
        args.overwrite,
        args.heldout_source,
    )


def _synthetic(args: argparse.Namespace) -> None:
    world = synthetic.World(stories=args.stories, written=args.written, useful=args.useful)

    def records(split: Split) -> Iterator[dict[str, Any]]:
        return map(asdict, synthetic.documents(world, args.seed, split))

    _write_texts(args, records, {"world": asdict(world), "seed": args.seed})


def _arithmetic(args: argparse.Namespace) -> None:
    if args.symbols:
        print(" ".join(f"--symbol={symbol}" for symbol in arithmetic.SYMBOLS))
        return
    if args.digits < 1 or not 0 <= args.written <= 1:
        raise ValueError(
            "expected --digits of at least 1 and --written to be a share in [0, 1], found "
            f"{args.digits} and {args.written}"
        )

    def records(split: Split) -> Iterator[dict[str, Any]]:
        for text in arithmetic.operation_texts(args.seed, split, args.digits, args.written):
            yield {"text": text}

    _write_texts(args, records)


def _write_texts(
    args: argparse.Namespace,
    records: Callable[[Split], Iterator[dict[str, Any]]],
    recipe: dict[str, Any] | None = None,
) -> None:
    """A folder with both splits as JSON lines, and perhaps what they were drawn from."""
    counts = {"train": args.documents, "heldout": args.tests}
    if min(counts.values()) < 1:
        raise ValueError(f"expected --documents and --tests of at least 1, found {counts}")
    with new_folder(args.out) as folder:
        for split, count in counts.items():
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                some = itertools.islice(records(split), count)
                for record in tqdm(some, split, count, unit=" documents"):
                    file.write(json.dumps(record) + "\n")
        if recipe is not None:
            write_json(folder / synthetic.RECIPE, recipe | {"documents": counts})


def _command(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    args.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.main(_command, argv, "interrupted; nothing was kept")


if __name__ == "__main__":
    # Terminated like interrupted: what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
