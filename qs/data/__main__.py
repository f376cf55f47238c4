"""Text to token shards, tokenizers, and generated text.

    python -m qs.data tokenizer  SOURCE... --out weights/NAME --vocab 4096
    python -m qs.data prepare    SOURCE... --out data/NAME --tokenizer weights/NAME
    python -m qs.data synthetic  --out data/raw/NAME --documents 200000
    python -m qs.data arithmetic --out data/raw/NAME --documents 200000

SOURCE is a file or a folder of .jsonl, .json (both JSON lines), either with .gz or .zst, .txt (one
document a file) or .parquet. synthetic and arithmetic write train.jsonl and heldout.jsonl. Of a
folder with files of both kinds by their names (train; heldout, test, validation, dev, eval) the
first are read, and as --heldout-source the others.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from qs import cli
from qs.atomic import new_folder
from qs.data import arithmetic, synthetic
from qs.data.dataset import Split
from qs.data.documents import MAX_DOCUMENT, DocumentReader, left_out
from qs.data.prepare import prepare_dataset
from qs.files import write_json
from qs.model.tokenizer import train_tokenizer
from qs.model.tokenizer_files import JSON_FILE, MODEL_FILE
from qs.output import progress


def _parser() -> cli.Parser:
    parser = cli.Parser("python -m qs.data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    share, count, seed = cli.within(float, 0, 1), cli.within(int, 1), cli.within(int, 0, 2**63 - 1)
    several: dict[str, Any] = {"action": "append", "default": []}

    about = "SOURCE is a file or a folder of .jsonl, .json (JSON lines), .txt or .parquet."
    what = "Train a sentencepiece tokenizer on documents. "
    tokenizer = commands.add_parser(
        "tokenizer", help="train a sentencepiece tokenizer", description=what + about
    )
    tokenizer.set_defaults(run=_train_tokenizer)
    flag = tokenizer.add_argument
    flag("--vocab", type=cli.within(int, 1, 2**24), default=4096, help="number of tokens [4096]")
    flag("--symbol", help="always a token of its own; may be repeated", **several)

    what = "Tokenize documents into shards that train.py reads, a share of them held out. "
    prepare = commands.add_parser(
        "prepare", help="tokenize documents into shards", description=what + about
    )
    prepare.set_defaults(run=prepare_dataset)
    flag = prepare.add_argument
    flag("--tokenizer", required=True, help="a folder with one, or a name in weights/")
    flag("--heldout", type=share, default=0.01, help="fraction held out [0.01]")
    held = "held out instead of a fraction, of a folder what its names hold out; may be repeated"
    flag("--heldout-source", dest="heldout_sources", metavar="SOURCE", help=held, **several)
    flag("--workers", type=cli.within(int, 1, 4096), help="processes [one a core]")
    flag("--shard-tokens", type=count, default=100_000_000, help="at most [10^8]")
    flag("--seed", type=seed, default=0, help="of the held-out draw [0]")
    flag("--overwrite", action="store_true", help="replace a dataset")

    for command in (tokenizer, prepare):
        flag = command.add_argument
        flag("sources", nargs="+", metavar="SOURCE", help="file or folder with documents")
        flag("--out", required=True, help="folder to make")
        texts = "field with the text [text]; a+b joins two; repeat for alternatives"
        flag("--field", dest="fields", metavar="FIELD", help=texts, **several)
        bound = (
            "bytes at most of a record as it is read (a line with all its fields, a text file, the "
            f"text of a parquet row); longer ones are left out [{MAX_DOCUMENT}]"
        )
        flag("--max-document", type=count, default=MAX_DOCUMENT, help=bound)

    world = commands.add_parser("synthetic", help="write text whose reasoning is often left out")
    world.set_defaults(run=_write_synthetic)
    flag = world.add_argument
    flag("--out", type=Path, required=True, help="folder to make")
    flag("--written", type=share, default=0.3, help="share with a working [0.3]")
    flag("--useful", type=share, default=0.5, help="share of these that help [0.5]")
    flag("--stories", type=cli.within(float, 0), default=1.0, help="weight of word problems [1]")

    sums = commands.add_parser("arithmetic", help="write sums with scratchpads")
    sums.set_defaults(run=_write_arithmetic)
    what = sums.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to make")
    what.add_argument("--symbols", action="store_true", help="print flags for `tokenizer` instead")
    flag = sums.add_argument
    flag("--digits", type=cli.within(int, 1, 100), default=2, help="of sums, at most [2]")
    flag("--written", type=share, default=1.0, help="share that has its steps [1]")

    for command, tests in ((world, 3_000), (sums, 500)):
        flag = command.add_argument
        flag("--documents", type=count, default=200_000, help="to train on [200000]")
        flag("--tests", type=count, default=tests, help=f"held-out documents [{tests}]")
        flag("--seed", type=seed, default=0, help="same seed, same text [0]")
    return parser


def _train_tokenizer(
    sources: list[str],
    out: str,
    fields: list[str],
    max_document: int,
    vocab: int,
    symbol: list[str],
) -> None:
    if any((Path(out) / name).is_file() for name in (MODEL_FILE, JSON_FILE)):
        advice = "remove it or choose another name"
        raise ValueError(f"{out}: expected a folder without a tokenizer, found one; {advice}")
    reader = DocumentReader(sources, fields, max_document)
    model = train_tokenizer(reader, out, vocab, symbols=symbol)
    print(f"{model.vocab_size:,} tokens; {left_out([reader])}\n{reader.sources.report()}\n{out}")


def _write_synthetic(out: Path, documents: int, tests: int, seed: int, **settings: float) -> None:
    world, counts = synthetic.World(**settings), {"train": documents, "heldout": tests}
    recipe = {"world": asdict(world), "seed": seed, "documents": counts}
    _write(out, counts, lambda split: map(asdict, synthetic.documents(world, seed, split)), recipe)


def _write_arithmetic(
    out: Path, symbols: bool, documents: int, tests: int, seed: int, digits: int, written: float
) -> None:
    if symbols:
        print(" ".join(f"--symbol={symbol}" for symbol in arithmetic.SYMBOLS))
        return
    texts = partial(arithmetic.operation_texts, seed, digits=digits, written=written)
    counts: dict[Split, int] = {"train": documents, "heldout": tests}
    _write(out, counts, lambda split: ({"text": text} for text in texts(split)))


def _write(
    out: Path,
    counts: dict[Split, int],
    draw: Callable[[Split], Iterator[dict[str, Any]]],
    recipe: dict[str, Any] | None = None,
) -> None:
    """Write the first records of each split as JSON lines, and perhaps what they are made of."""
    with new_folder(out) as folder:
        for split, count in counts.items():
            records = itertools.islice(draw(split), count)
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for record in progress(records, split, count, unit=" documents"):
                    file.write(json.dumps(record) + "\n")
        if recipe:
            write_json(folder / synthetic.RECIPE, recipe)


def _run(argv: list[str]) -> None:
    args = vars(_parser().parse_args(argv))
    args.pop("run")(**args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.main(_run, argv, "nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
