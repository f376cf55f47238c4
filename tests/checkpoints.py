"""Small checkpoints for tests: made, damaged, renamed into another layout, compared."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.model.config import ModelConfig, read_config
from qs.model.tensors import shapes, stored_name

SMALL = ModelConfig(
    vocab_size=11, dim=12, layers=2, heads=4, kv_heads=2, head_dim=6, hidden_dim=10, window=7
)


def filled(
    wanted: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in wanted.items()}


def blank(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Destinations of the same shapes, all NaN."""
    return {n: torch.full_like(t, torch.nan, dtype=dtype) for n, t in tensors.items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def edit(folder: Path, change) -> None:
    """Rewrite a checkpoint's tensors after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_json(path: Path, **values) -> None:
    """Change keys of a JSON file; `...` removes one."""
    held = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not ...}))


def as_mistral(folder: Path) -> None:
    """Rename a Hugging Face folder's tensors and files (values of wq and wk keep their order)."""
    config = read_config(folder)
    names = {stored_name(n, "hf"): n for n in shapes(config)}
    for i, file in enumerate(sorted(folder.glob("model*.safetensors"))):
        tensors = {names[n]: t for n, t in load_file(file).items()}
        save_file(tensors, folder / f"consolidated.{i:02}.safetensors")
        del tensors
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / "config.json").unlink()
    params = {
        "dim": config.dim,
        "n_layers": config.layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "sliding_window": config.window,
    }
    (folder / "params.json").write_text(json.dumps(params))
