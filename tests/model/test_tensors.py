"""tensors: every tensor lands where it belongs, and what does not fit is named, never guessed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, as_mistral, assert_same_bits, blank, edit, edit_json, filled
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.model.mistral import Mistral
from qs.model.tensors import extra_shapes, load_into, shapes, stored_tensors
from qs.model.weights import save

Q, HEAD = "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file, to be damaged."""
    save(tmp_path / "small", SMALL, filled(shapes(SMALL), 0))
    return tmp_path / "small"


def test_the_names_of_parameters_are_those_of_the_model():
    for tied in (False, True):
        config = dataclasses.replace(SMALL, tied=tied)
        model = Mistral(config)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == shapes(config)


def test_extras_are_left_alone_where_the_folder_has_none(folder):
    extras = filled(extra_shapes(12), 3)
    before = {n: t.clone() for n, t in extras.items()}
    assert load_into(folder, blank(filled(shapes(SMALL), 0)), extras) is False
    assert_same_bits(extras, before)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_tensors_take_the_dtype_of_their_destination(stored, wanted, tmp_path):
    written = filled(shapes(SMALL), 0)
    save(tmp_path, SMALL, written, dtype=stored)
    read = blank(written, wanted)
    load_into(tmp_path, read)
    assert_same_bits(read, {n: t.to(stored).to(wanted) for n, t in written.items()})
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(stored)[6:]


def test_parameters_that_need_gradients_are_loaded_in_place(folder):
    model = Mistral(SMALL)
    embedding = model.tok_embeddings.weight
    load_into(folder, dict(model.named_parameters()))
    assert model.tok_embeddings.weight is embedding
    assert embedding.requires_grad
    assert embedding.is_leaf
    assert_same_bits({n: p.data for n, p in model.named_parameters()}, filled(shapes(SMALL), 0))


MEASURE = """
import sys, torch
from qs.model.config import read_config
from qs.model.tensors import load_into, shapes

def peak():  # VmHWM belongs to this process alone, unlike ru_maxrss
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

config = read_config(sys.argv[1])
ours = {n: torch.zeros(s, dtype=getattr(torch, sys.argv[2])) for n, s in shapes(config).items()}
for tensor in ours.values():
    tensor.fill_(1)
before = peak()
load_into(sys.argv[1], ours)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("layout", "dtype"), [("hf", "float32"), ("mistral", "bfloat16")])
def test_reading_needs_no_more_memory_than_the_model_and_one_shard(layout, dtype, tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=1000, dim=1024, layers=5, hidden_dim=1536)
    config = dataclasses.replace(config, heads=16, kv_heads=8, head_dim=64)  # 165 MB in float32
    values = {n: torch.ones(()).expand(shape) for n, shape in shapes(config).items()}
    save(tmp_path, config, values, max_shard_bytes=40_000_000)
    if layout == "mistral":
        as_mistral(tmp_path)
    largest = max(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{layout}: {int(found.stdout) / largest:.2f} of the largest shard, {largest:,} bytes")
    assert int(found.stdout) <= 1.2 * largest


def test_a_folder_with_both_layouts_is_read_as_hugging_face(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({"nonsense": tensors[Q]}, folder / "consolidated.safetensors")
    (folder / "params.json").write_text("{}")
    read = blank(filled(shapes(SMALL), 0))
    load_into(folder, read)
    assert_same_bits(read, filled(shapes(SMALL), 0))


def test_files_beside_the_weights_are_not_read(folder):
    save_file({"x": torch.ones(1)}, folder / "optimizer.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    load_into(folder, blank(filled(shapes(SMALL), 0)))


def test_old_rotary_buffers_are_ignored(folder):
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda t: t.update({name: torch.ones(3)}))
    read = blank(filled(shapes(SMALL), 0))
    load_into(folder, read)
    assert_same_bits(read, filled(shapes(SMALL), 0))


@pytest.mark.parametrize("stored", ["embedding", "head", "both"])
def test_a_tied_model_is_read_whichever_copy_is_stored(stored, tmp_path):
    config = dataclasses.replace(SMALL, tied=True)
    written = filled(shapes(config), 0)
    save(tmp_path, config, written)

    def change(tensors: dict[str, Tensor]) -> None:
        if stored != "embedding":
            tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
        if stored == "head":
            del tensors["model.embed_tokens.weight"]

    edit(tmp_path, change)
    read = blank(written)
    load_into(tmp_path, read)
    assert_same_bits(read, written)


def test_a_tied_model_with_another_head_is_refused(tmp_path):
    config = dataclasses.replace(SMALL, tied=True)
    save(tmp_path, config, filled(shapes(config), 0))
    edit(tmp_path, lambda t: t.update({HEAD: torch.ones(11, 12)}))
    with pytest.raises(ValueError, match=r"1 tensor unexpected \(lm_head.weight\)"):
        load_into(tmp_path, blank(filled(shapes(config), 0)))


def test_everything_that_does_not_fit_is_listed_before_anything_is_copied(folder):
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if "layers.1" in n]:
            del tensors[name]
        tensors["lm_head.bias"] = torch.ones(11)
        tensors[Q] = torch.ones(24, 13)
        tensors["model.norm.weight"] = torch.ones(12, dtype=torch.int8)

    edit(folder, change)
    read = blank(filled(shapes(SMALL), 0))
    with pytest.raises(ValueError, match="is this a Mistral checkpoint") as error:
        load_into(folder, read)
    message = str(error.value)
    assert message.startswith(f"{folder}: 9 tensors missing (model.layers.1.input_layernorm.weight")
    assert ", ...), 1 tensor unexpected (lm_head.bias), 2 tensors of another shape" in message
    assert f"{Q}: expected [24, 12], found F32 [24, 13]" in message
    assert "model.norm.weight: expected [12], found I8 [12]" in message
    assert all(t.isnan().all() for t in read.values())


@pytest.mark.parametrize("asked", [True, False])
def test_some_but_not_all_extras_are_refused(asked, tmp_path):
    parameters, extras = filled(shapes(SMALL), 0), filled(extra_shapes(12), 1)
    save(tmp_path, SMALL, parameters, extras, layout="quietstar")
    edit(tmp_path, lambda t: t.pop("talk_head.0.2.bias"))
    with pytest.raises(ValueError, match=r"1 tensor missing \(talk_head.0.2.bias\)"):
        load_into(tmp_path, parameters, extras if asked else None)


def test_damaged_or_missing_files_are_refused(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for bad in (b"", content[:100], content[:-4], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="model.safetensors: expected a safetensors file"):
            stored_tensors(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="never unpickled"):
        stored_tensors(folder)


def test_a_damaged_index_is_refused(tmp_path):
    save(tmp_path, SMALL, filled(shapes(SMALL), 0), max_shard_bytes=1000)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    for bad in (None, [], good | {HEAD: "../x.safetensors"}, good | {HEAD: 3}):
        edit_json(index, weight_map=bad)
        with pytest.raises(ValueError, match="expected a weight_map"):
            stored_tensors(tmp_path)
    edit_json(index, weight_map=good | {HEAD: "gone.safetensors"})
    with pytest.raises(ValueError, match="gone.safetensors: expected a safetensors file"):
        stored_tensors(tmp_path)
    elsewhere = next(f for f in good.values() if f != good[HEAD])
    edit_json(index, weight_map=good | {HEAD: elsewhere})
    with pytest.raises(ValueError, match=r"1 tensor missing \(lm_head.weight\)"):
        load_into(tmp_path, blank(filled(shapes(SMALL), 0)))


def test_where_an_index_names_a_file_copies_elsewhere_do_not_count(tmp_path):
    written = filled(shapes(SMALL), 0)
    save(tmp_path, SMALL, written, max_shard_bytes=1000)
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(listed.values()) - {listed[Q]}:
        save_file(load_file(tmp_path / file) | {Q: torch.ones(3)}, tmp_path / file)
    read = blank(written)
    load_into(tmp_path, read)
    assert_same_bits(read, written)


def test_a_tensor_in_two_consolidated_files_is_refused(folder):
    as_mistral(folder)
    save_file({"norm.weight": torch.ones(12)}, folder / "consolidated.01.safetensors")
    with pytest.raises(ValueError, match=r"norm.weight is also in consolidated.00.safetensors"):
        stored_tensors(folder)
