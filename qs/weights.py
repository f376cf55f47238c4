"""Checkpoints as safetensors: three layouts of one model, read into and written from our names.

Read: Hugging Face (`config.json` with `model.safetensors`, or with shards and their index), the
same with the extra tensors of the released Quiet-STaR, and Mistral's own (`params.json` with
`consolidated*.safetensors`). A folder that holds both is read as Hugging Face. The first two are
written. Reading is in `qs/tensors.py` and `qs/model_config.py`, and offered here.

    python -m qs.weights init --out weights/NAME --tokenizer FOLDER --dim 256 --layers 4 ...
    python -m qs.weights export runs/NAME --layout hf --out FOLDER [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qs.checkpoint import OPTIMIZER
from qs.config import ModelConfig
from qs.files import flush
from qs.model_config import CONSOLIDATED, INDEX, SINGLE, THOUGHT_MARKS, checked, hf_json
from qs.model_config import read_config as read_config
from qs.model_config import read_settings as read_settings
from qs.tensors import DTYPES, VECTORS, extra_shapes, refuse, shapes, stored_name, stored_tensors
from qs.tensors import load_into as load_into

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
DOWNLOADS = {
    "mistral-7b": "hf download mistralai/Mistral-7B-v0.1 --local-dir weights/mistral-7b "
    "--include '*.json' --include tokenizer.model --include 'model-*.safetensors'",
    "quietstar-8-ahead": "hf download ezelikman/quietstar-8-ahead "
    "--local-dir weights/quietstar-8-ahead",
}


def save(
    folder: str | Path,
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
    settings: dict[str, Any] | None = None,
    layout: str = "hf",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint, flushed to disk; `config.json` comes last.

    Args:
        folder: made if missing; must hold no other weights.
        config: shape of the model.
        parameters: our name -> tensor, as of `shapes`.
        extras: our name -> tensor, as of `extra_shapes`; the vectors at their stored scale.
        settings: plain values that `read_settings` gives back; for either layout.
        layout: `hf` (plain language model) or `quietstar` (with extras).
        dtype: of the tensors in the files; None keeps each tensor's own.
        max_shard_bytes: largest file, unless one tensor alone is larger; also the host memory used.

    Raises:
        ValueError: if the layout has no place for what is given, or the folder holds weights.
        OSError: if the disk refuses.
    """
    folder = Path(folder)
    if layout not in ("hf", "quietstar") or (layout == "quietstar") != (extras is not None):
        raise ValueError(
            f"{folder}: expected layout hf without extras or quietstar with them, found {layout} "
            f"{'without' if extras is None else 'with'} them"
        )
    checked(config, str(folder))
    if any(folder.glob("model*.safetensors*")) or any(folder.glob(CONSOLIDATED)):
        raise ValueError(f"{folder}: holds weights already; save into another folder")
    ours = {**parameters, **(extras or {})}
    expected = shapes(config) | (extra_shapes(config.dim) if extras is not None else {})
    wrong = [f"{n}: {list(ours[n].shape)}" for n in ours if tuple(ours[n].shape) != expected.get(n)]
    refuse(str(folder), sorted(expected.keys() - ours.keys()), [], wrong)
    folder.mkdir(parents=True, exist_ok=True)
    shards, size = [[]], 0
    for name in expected:
        need = ours[name].numel() * (dtype or ours[name].dtype).itemsize * (1 + (name in VECTORS))
        if shards[-1] and size + need > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += need
    weight_map = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {stored_name(n, layout): _to_store(ours[n], dtype, n in VECTORS) for n in names}
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / file}: cannot be written: {error}") from None
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read
        flush(folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.nbytes for t in tensors.values())
        kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        del tensors
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    if config.thought_ids:
        marks = dict(zip(THOUGHT_MARKS.values(), config.thought_ids, strict=True))
        _write_json(folder / "added_tokens.json", marks)
    _write_json(folder / "config.json", hf_json(config, kind, layout, settings))
    flush(folder)


def _to_store(tensor: Tensor, dtype: torch.dtype | None, is_vector: bool) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype or tensor.dtype)
    return (torch.stack([tensor, torch.zeros_like(tensor)]) if is_vector else tensor).contiguous()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    flush(path)


def resolve(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder of a checkpoint: a folder as it is, a name in `root`, or a run's newest step.

    A step `step_*` is complete if it holds a `config.json` and weights; others are passed over.

    Raises:
        ValueError: if there is none; for checkpoints we know, with the command that gets them.
    """
    folder = next((f for f in (Path(name), Path(root) / name) if f.is_dir()), None)
    if folder is None:
        get = DOWNLOADS.get(str(name))
        hint = f"get it with: {get}" if get else f"give a folder or one of the names in {root}"
        raise ValueError(f"{name}: expected a checkpoint, found no such folder; {hint}")
    steps = [f for f in folder.glob("step_*") if f.is_dir()]
    done = [f for f in steps if re.fullmatch(r"step_\d+", f.name) and _complete(f)]
    if steps and not done:
        raise ValueError(f"{folder}: expected a run with a complete step_* folder, found none")
    return max(done, key=lambda f: int(f.name[5:])) if done else folder


def _complete(folder: Path) -> bool:
    weights = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return weights and (folder / "config.json").is_file()


def digest(folder: Path) -> str:
    """A short name for what a checkpoint says: the same for the same files, wherever they are."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        weights = path.suffix == ".safetensors" and path.name != OPTIMIZER
        if weights or path.name in ("config.json", "params.json", "tokenizer.model"):
            with path.open("rb") as file:
                found.update(
                    f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
                )
    return found.hexdigest()[:16]


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


@contextlib.contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all went well, and disappears otherwise.

    Raises:
        ValueError: if `out` exists already.
    """
    if out.exists():
        raise ValueError(f"{out}: expected a new folder, found one; remove it or choose another")
    aside = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        yield aside
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def init(args: argparse.Namespace) -> None:
    """Write a randomly initialised model with a tokenizer."""
    from qs.tokenizer import Tokenizer

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
    with written_aside(args.out) as folder:
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
    with written_aside(args.out) as folder:
        save(folder, config, parameters, extras, settings, args.layout)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, folder)
    print(f"{args.out}: {source} as {args.layout}, {str(dtype).removeprefix('torch.')}")


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m qs.weights", description=__doc__)
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
        print(f"python -m qs.weights: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
