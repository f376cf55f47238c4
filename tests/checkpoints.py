"""Small checkpoints for tests: made, damaged, renamed into another layout, compared."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.model.config import ModelConfig, read_model_config
from qs.model.folders import INDEX, SINGLE
from qs.model.weights import meta_parameters, save, stored_name

SMALL = ModelConfig(
    vocab_size=11, dim=12, layers=2, heads=4, kv_heads=2, head_dim=6, hidden_dim=10, window=7
)


def filled(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random parameters of a language model."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: parameter.shape for name, parameter in meta_parameters(config).items()}
    return {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in shapes.items()}


def filled_extras(dim: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors as Quiet-STaR adds them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "start": (dim,),
        "end": (dim,),
        "mixer.0.weight": (dim, 2 * dim),
        "mixer.0.bias": (dim,),
        "mixer.2.weight": (dim, dim),
        "mixer.2.bias": (dim,),
        "mixer.4.weight": (1, dim),
    }
    return {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in shapes.items()}


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
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def edit_json(path: Path, **values) -> None:
    """Change keys of a JSON file; `...` removes one."""
    held = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not ...}))


def shard(folder: Path, limit: int) -> dict[str, str]:
    """Spread `model.safetensors` over files of at most `limit` bytes; returns who is where."""
    tensors = load_file(folder / SINGLE)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, held in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def as_mistral(folder: Path) -> None:
    """Rename a Hugging Face folder's tensors and files (values of wq and wk keep their order)."""
    config = read_model_config(folder)
    names = {stored_name(n, "hf"): n for n in meta_parameters(config)}
    for i, file in enumerate(sorted(folder.glob("model*.safetensors"))):
        tensors = {names[n]: t for n, t in load_file(file).items()}
        save_file(tensors, folder / f"consolidated.{i:02}.safetensors")
        del tensors
        file.unlink()
    (folder / INDEX).unlink(missing_ok=True)
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


def run_folder(root: Path) -> Path:
    """A run with two complete steps, one without a config, one without weights, one aside."""
    run = root / "run"
    (run / "step_000100").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for seed, step in enumerate(("step_000090", "step_000100", "step_000110.partial-1")):
        extras = filled_extras(12, seed + 10)
        settings = {"embedding_scale": 100.0}
        save(run / step, SMALL, filled(SMALL, seed), extras, settings)
        save_file({"x": torch.ones(1)}, run / step / "optimizer.safetensors")
        (run / step / "tokenizer.model").write_bytes(b"model")
    (run / "step_000120").mkdir()
    (run / "step_000120" / "model.safetensors").touch()
    (run / "step_000130").mkdir()
    (run / "step_000130" / "config.json").touch()
    (run / "step_000130" / "optimizer.safetensors").touch()
    return run
