"""__main__."""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from qs.files import new_folder
from qs.model.config import (
    ModelConfig,
    checked,
)
from qs.model.config import read_config as read_config
from qs.model.config import read_settings as read_settings
from qs.model.tensors import (
    DTYPES,
    extra_shapes,
    shapes,
    stored_tensors,
)
from qs.model.tensors import load_into as load_into
from qs.model.weights import TOKENIZER_FILES, resolve, save


def random_parameters(config: ModelConfig, seed: int, spread: float = 0.02) -> dict[str, Tensor]:
    """New float32 parameters: N(0, spread) matrices, projections back into the stream smaller."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(config).items():
        back = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
        std = spread / (2 * config.layers) ** 0.5 if back else spread
        found[name] = torch.ones(shape)
        if len(shape) > 1:
            found[name].normal_(0, std, generator=generator)
    return found


def init(args: argparse.Namespace) -> None:
    """Write a randomly initialised model with a tokenizer."""
    from qs.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    if args.heads < 1 or args.dim % args.heads:
        raise ValueError(f"--heads {args.heads} does not divide --dim {args.dim}; change one")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=args.dim,
        layers=args.layers,
        heads=args.heads,
        kv_heads=args.heads if args.kv_heads is None else args.kv_heads,
        head_dim=args.dim // args.heads,
        hidden_dim=args.hidden_dim,
        window=args.window,
        max_positions=args.max_positions,
        tied=args.tied,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    checked(config, "--dim, --layers, ...")
    with new_folder(args.out) as folder:
        save(folder, config, random_parameters(config, args.seed, args.std))
        shutil.copy(Path(args.tokenizer) / "tokenizer.model", folder)
    count = sum(torch.Size(shape).numel() for shape in shapes(config).values())
    print(f"{args.out}: {count:,} parameters, {config.vocab_size:,} tokens")


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint, or a run's newest, in another layout or dtype."""
    source = resolve(args.source)
    config, stored = read_config(source), stored_tensors(source).values()
    if unknown := {s.dtype for s in stored} - DTYPES.keys():
        raise ValueError(f"{source}: expected floating-point tensors, found {unknown}")
    dtypes = {DTYPES[s.dtype] for s in stored} or {torch.float32}
    widest = functools.reduce(torch.promote_types, dtypes)
    dtype = getattr(torch, args.dtype) if args.dtype else widest
    parameters = {n: torch.empty(shape, dtype=dtype) for n, shape in shapes(config).items()}
    extras = None
    if args.layout == "quietstar":
        extras = {n: torch.empty(s, dtype=dtype) for n, s in extra_shapes(config.dim).items()}
    if not load_into(source, parameters, extras) and extras is not None:
        raise ValueError(f"{source}: holds no Quiet-STaR tensors; export it with --layout hf")
    settings = read_settings(source) if extras is not None else None
    with new_folder(args.out) as folder:
        save(folder, config, parameters, extras, settings, args.layout)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, folder)
    print(f"{args.out}: {source} as {args.layout}, {str(dtype).removeprefix('torch.')}")


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m qs.model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("init", help="write a random model", allow_abbrev=False)
    new.set_defaults(command=init)
    new.add_argument("--out", type=Path, required=True, help="folder to make")
    new.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.model")
    new.add_argument("--dim", type=int, required=True, help="D: hidden size")
    new.add_argument("--layers", type=int, required=True, help="layers")
    new.add_argument("--heads", type=int, required=True, help="H: query heads")
    new.add_argument("--kv-heads", type=int, help="G: key/value heads [as many as --heads]")
    new.add_argument("--hidden-dim", type=int, required=True, help="inner width of the MLP")
    new.add_argument("--max-positions", type=int, required=True, help="longest row in tokens")
    new.add_argument("--window", type=int, help="sliding window in tokens [none]")
    new.add_argument("--tied", action="store_true", help="the head is the embedding")
    new.add_argument("--std", type=float, default=0.02, help="spread of new matrices [0.02]")
    new.add_argument("--seed", type=int, default=0, help="of the parameters [0]")
    other = commands.add_parser("export", help="write in another layout", allow_abbrev=False)
    other.set_defaults(command=export)
    other.add_argument("source", metavar="RUN", help="run folder, checkpoint folder or name")
    other.add_argument("--out", type=Path, required=True, help="folder to make")
    other.add_argument("--layout", choices=["hf", "quietstar"], required=True, help="see above")
    other.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="[as stored]")
    args = parser.parse_args(argv)
    try:
        args.command(args)
    except (ValueError, OSError) as error:
        print(f"python -m qs.model: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
