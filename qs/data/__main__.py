"""__main__."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from qs.data.documents import read_documents
from qs.data.prepare import prepare
from qs.model.tokenizer import train_tokenizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qs.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("prepare", "tokenize documents"), ("tokenizer", "train a tokenizer")):
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument("sources", nargs="+", metavar="SOURCE")
        command.add_argument("--out", required=True, help="folder to make")
        command.add_argument(
            "--field",
            action="append",
            help="field with the text (default: text); a+b joins two; repeat for alternatives",
        )
        if name == "tokenizer":
            command.add_argument("--vocab", type=int, default=4096, help="number of tokens")
            command.add_argument(
                "--symbol",
                action="append",
                default=[],
                metavar="TEXT",
                help="always a token of its own; may be repeated",
            )
            continue
        command.add_argument("--tokenizer", required=True, help="folder with tokenizer.model")
        command.add_argument("--heldout", type=float, default=0.01, help="fraction held out")
        command.add_argument(
            "--heldout-source",
            action="append",
            default=[],
            metavar="SOURCE",
            help="held out instead of a fraction; may be repeated",
        )
        command.add_argument("--workers", type=int, help="processes (default: one a core)")
        command.add_argument("--shard-tokens", type=int, default=100_000_000, help="at most")
        command.add_argument("--seed", type=int, default=0, help="of the held-out draw")
        command.add_argument("--overwrite", action="store_true", help="replace a dataset")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status: 0, 2 for an error told in one line, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    fields = args.field or ["text"]
    try:
        if args.command == "tokenizer":
            texts = read_documents(args.sources, fields)
            model = train_tokenizer(texts, args.out, args.vocab, symbols=args.symbol)
            print(f"{model.vocab_size:,} tokens\n{args.out}")
        else:
            prepare(
                args.sources,
                args.out,
                args.tokenizer,
                fields,
                args.heldout,
                args.workers,
                args.shard_tokens,
                args.seed,
                args.overwrite,
                args.heldout_source,
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # Terminated like interrupted: what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
