"""A tiny run for tests: tokenizer, prepared data, random weights, and train.py itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qs.config import ThoughtConfig
from qs.data import __main__ as main
from qs.data.prepare import prepare_dataset
from qs.model import __main__ as model_commands
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar

ROOT = Path(__file__).parents[1]

import train  # noqa: E402

VOCAB, DIM, POSITIONS = 300, 16, 48
TEXTS = [
    f"{a} plus {b} is {a + b}.\nThen {a} times {b} is {a * b}." for a in range(9) for b in range(9)
]
SMALL = [
    *("--seq", "16", "--batch", "4", "--steps", "6", "--eval-rows", "6", "--warmup", "2"),
    *("--thoughts", "2", "--ahead", "2", "--samples", "2", "--device", "cpu"),
    *("--lr", "1e-2", "--mixer-lr", "1e-2", "--thought-lr", "1e-3"),  # so that every step shows
]
CLOCK = {"tokens_per_second", "thought_tokens_per_second", "memory_bytes"}


@dataclass(frozen=True)
class Tiny:
    """Folders of a tokenizer, of data that it prepared and of a random model."""

    tokenizer: Path
    data: Path
    weights: Path

    def flags(self, out: Path, *more: str) -> list[str]:
        """A command line for a short run; later flags win."""
        return [f"--data={self.data}", f"--weights={self.weights}", f"--out={out}", *SMALL, *more]


def make(
    folder: Path, vocab: int = VOCAB, extra: Sequence[str] = (), positions: int = POSITIONS
) -> Tiny:
    """Make all three, with the project's own commands; `extra` is more text."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, *extra]))
    made = Tiny(folder / "tokenizer", folder / "data", folder / "weights")
    assert main.main(["tokenizer", str(source), f"--out={made.tokenizer}", f"--vocab={vocab}"]) == 0
    prepare_dataset([source], made.data, made.tokenizer, heldout=0.1, workers=1)
    init_weights(made.weights, made.tokenizer, positions=positions)
    return made


def make_world(folder: Path) -> Tiny:
    """The same of text whose answers are known, with its recipe beside the data."""
    made = Tiny(folder / "tokenizer", folder / "data", folder / "weights")
    raw = folder / "raw"
    counts = ["--documents=200", "--tests=40", "--seed=3"]
    assert main.main(["synthetic", f"--out={raw}", *counts]) == 0
    train_text, heldout = str(raw / "train.jsonl"), raw / "heldout.jsonl"
    command = ["tokenizer", train_text, f"--out={made.tokenizer}", "--vocab=330"]
    assert main.main([*command, "--symbol=:", "--symbol=;"]) == 0
    prepare_dataset([train_text], made.data, made.tokenizer, workers=1, heldout_sources=[heldout])
    shutil.copy(raw / "world.json", made.data)
    init_weights(made.weights, made.tokenizer, positions=128)
    return made


def init_weights(out: Path, tokenizer: Path, seed: int = 0, positions: int = POSITIONS) -> None:
    """A random model of `DIM` for a tokenizer."""
    command = ["init", f"--out={out}", f"--tokenizer={tokenizer}", f"--dim={DIM}", "--layers=2"]
    command += ["--heads=2", "--kv-heads=1", "--hidden-dim=24", f"--max-positions={positions}"]
    assert model_commands.main([*command, f"--seed={seed}"]) == 0


def module(config: ThoughtConfig, seed: int = 0) -> QuietStar:
    """A float64 module in memory in which no parameter is zero."""
    shape = ModelConfig(
        vocab_size=11, dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden_dim=12
    )
    quiet = QuietStar(Mistral(shape, torch.float64), config).double()
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in quiet.parameters():
            parameter.normal_(0, 0.4, generator=numbers)
    return quiet


def batch(seed: int, rows: int = 4, length: int = 7, cut: bool = True) -> tuple[Tensor, Tensor]:
    """Tokens and documents; rows with unequal padding and, if `cut`, of several documents."""
    numbers = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (rows, length), generator=numbers)
    documents = (torch.rand((rows, length), generator=numbers) < 0.3 * cut).cumsum(1)
    padding = torch.randint(length, (rows,), generator=numbers)
    padding[0] = 0  # something counts
    return tokens, documents.where(torch.arange(length) < length - padding[:, None], -1)


def only(out: Path) -> Path:
    """The one run folder in `out`."""
    (run,) = out.iterdir()
    return run


def run(out: Path, arguments: list[str], status: int = 0) -> Path:
    """Run train.py in this process and return its run folder."""
    assert train.main(arguments) == status
    return only(out)


def spawn(arguments: list[str], before: str = "") -> subprocess.CompletedProcess:
    """Run train.py in a process of its own, after some lines of Python."""
    code = f"import sys, train\n{before}\nsys.exit(train.main({arguments!r}))"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | threads,
        capture_output=True,
        text=True,
        timeout=120,
    )


def log(run: Path) -> list[dict[str, Any]]:
    """The log's records without what a clock or the machine says."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, the optimiser's too."""
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name}/{n}": t for file in files for n, t in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        bits = [x.detach().flatten().view(torch.uint8) for x in (tensor, other[name])]
        assert torch.equal(*bits), name


def same_checkpoint(one: Path, other: Path, tokenizer: str = "tokenizer.model") -> None:
    """Parameters, optimiser, counters and data position are the same bits."""
    same_bits(tensors(one), tensors(other))
    for name in ("trainer.json", "config.json", tokenizer):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
