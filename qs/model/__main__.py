"""Make a random model, or write a checkpoint in another layout.

python -m qs.model init --out weights/NAME --tokenizer FOLDER --dim 256 --layers 4 ...
python -m qs.model export runs/NAME --layout hf --out FOLDER [--dtype bfloat16]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qs import cli
from qs.atomic import new_folder
from qs.digests import check_digests, write_digests
from qs.model import folders, weights
from qs.model.config import ModelConfig, read_model_config, read_settings
from qs.model.tokenizer import Tokenizer, copy_tokenizer


def random_parameters(config: ModelConfig, seed: int, spread: float = 0.02) -> dict[str, Tensor]:
    """New float32 parameters: N(0, spread) matrices, projections back into the stream smaller."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.ones(p.shape) for name, p in weights.meta_parameters(config).items()}
    for name, parameter in parameters.items():
        back = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
        if parameter.dim() > 1:  # else of a norm: one
            std = spread / (2 * config.layers) ** 0.5 if back else spread
            parameter.normal_(0, std, generator=generator)
    return parameters


def init(out: Path, tokenizer: str | Path, std: float, seed: int, **sizes: Any) -> None:
    """Write a randomly initialised model with a tokenizer; `sizes` are fields of `ModelConfig`."""
    tokenizer = folders.resolve(tokenizer)
    text, dim, heads = Tokenizer(tokenizer), sizes["dim"], sizes["heads"]
    if heads < 1 or dim % heads:
        raise ValueError(f"--heads {heads} does not divide --dim {dim}; change one")
    if sizes["kv_heads"] is None:
        sizes["kv_heads"] = heads
    ids = {"bos_id": text.bos_id, "eos_id": text.eos_id, "pad_id": text.pad_id}
    config = ModelConfig(text.vocab_size, head_dim=dim // heads, **ids, **sizes)
    parameters = random_parameters(config, seed, std)
    with new_folder(out) as folder:
        weights.save(folder, config, parameters)
        copy_tokenizer(tokenizer, folder)
        write_digests(folder)
    count = sum(parameter.numel() for parameter in parameters.values())
    print(f"{out}: {count:,} parameters, {config.vocab_size:,} tokens")


def export(source: str, out: Path, layout: str, dtype: str | None) -> None:
    """Write a checkpoint, or a run's newest, in another layout or dtype."""
    folder = folders.resolve(source)
    check_digests(folder)
    config, stored = read_model_config(folder), weights.stored_tensors(folder)
    dtypes = {tensor.dtype for tensor in stored.values()} or {torch.float32}
    kind = getattr(torch, dtype) if dtype else functools.reduce(torch.promote_types, dtypes)
    empty = weights.meta_parameters(config)
    parameters = {name: torch.empty(p.shape, dtype=kind) for name, p in empty.items()}
    extras = settings = None
    if layout == "quietstar":
        settings, extras = read_settings(folder), {}
        own = weights.has_own_head(settings)
        for name, theirs in weights.stored_extras(stored, own).items():
            if theirs in stored:  # what is missing `load_into` names
                shape = stored[theirs].shape[name in weights.VECTORS :]
                extras[name] = torch.empty(shape, dtype=kind)
    if not weights.load_into(folder, parameters, extras) and extras is not None:
        raise ValueError(f"{folder}: holds no Quiet-STaR tensors; export it with --layout hf")
    with new_folder(out) as new:
        weights.save(new, config, parameters, extras, settings)
        copy_tokenizer(folder, new)
        write_digests(new)
    print(f"{out}: {folder} as {layout}, {str(kind).removeprefix('torch.')}")


def _parser() -> cli.Parser:
    size = cli.within(int, 1)
    parser = cli.Parser("python -m qs.model", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("init", help="write a random model")
    new.set_defaults(command=init)
    flag = new.add_argument
    flag("--out", type=Path, required=True, help="folder to make")
    flag("--tokenizer", required=True, help="a folder with one, or a name in weights/")
    flag("--dim", type=size, required=True, help="D: hidden size")
    flag("--layers", type=size, required=True, help="layers")
    flag("--heads", type=size, required=True, help="H: query heads")
    flag("--kv-heads", type=size, help="G: key/value heads [as many as --heads]")
    flag("--hidden-dim", type=size, required=True, help="inner width of the MLP")
    flag("--max-positions", type=size, required=True, help="longest row in tokens")
    flag("--window", type=size, help="sliding window in tokens [none]")
    flag("--tied", action="store_true", help="the head is the embedding")
    flag(
        "--std", type=cli.within(float, 0, 1e3), default=0.02, help="spread of new matrices [0.02]"
    )
    flag("--seed", type=cli.within(int, 0, 2**63 - 1), default=0, help="of the parameters [0]")
    layouts = "hf: a stock model, without what was added for thinking; quietstar: with it"
    other = commands.add_parser("export", help="write in another layout")
    other.set_defaults(command=export)
    other.add_argument("source", metavar="RUN", help="run folder, checkpoint folder or name")
    other.add_argument("--out", type=Path, required=True, help="folder to make")
    other.add_argument("--layout", choices=["hf", "quietstar"], required=True, help=layouts)
    other.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="[as stored]")
    return parser


def _run(argv: list[str]) -> None:
    args = vars(_parser().parse_args(argv))
    args.pop("command")(**args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.main(_run, argv, "nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
