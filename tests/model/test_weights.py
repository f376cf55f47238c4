"""weights: what is written is read back bit for bit; what does not fit is named, never guessed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoints import (
    SMALL,
    as_mistral,
    assert_same_bits,
    blank,
    edit,
    edit_json,
    filled,
    filled_extras,
    shard,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.config import ThoughtConfig
from qs.model import shards
from qs.model.config import (
    FAMILIES,
    ModelConfig,
    read_model_config,
    read_settings,
)
from qs.model.mistral import Mistral
from qs.model.rope_scaling import RopeScaling
from qs.model.weights import (
    QUIET_NAMES,
    load_into,
    meta_parameters,
    save,
    stored_tensors,
)
from qs.quietstar.algorithm import QuietStar

GOLDEN = Path(__file__).parents[1] / "golden"
Q, HEAD = "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file, to be damaged."""
    save(tmp_path / "small", SMALL, filled(SMALL, 0))
    return tmp_path / "small"


@given(
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    half=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    layers=st.sampled_from([1, 2, 11]),
    tied=st.booleans(),
    family=st.sampled_from(sorted(FAMILIES)),
    window=st.none() | st.integers(1, 9),
    scaling=st.none() | st.just(RopeScaling(8.0, 1.0, 4.0, 32)),
    marked=st.booleans(),
    quiet=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    limit=st.none() | st.sampled_from([200, 1000]),
    seed=st.integers(0, 2**32),
)
def test_a_model_written_and_read_again_is_bit_identical(
    groups,
    shared,
    half,
    sizes,
    layers,
    tied,
    family,
    window,
    scaling,
    marked,
    quiet,
    dtype,
    limit,
    seed,
):
    config = ModelConfig(
        vocab_size=sizes[0] + 4,
        dim=sizes[1],
        hidden_dim=sizes[2],
        layers=layers,
        heads=groups * shared,
        kv_heads=groups,
        head_dim=2 * half,
        tied=tied,
        family=family,
        window=window if family == "mistral" else None,
        rope_scaling=scaling,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=77,
        bos_id=None,
        eos_id=3,
        pad_id=0,
        thought_ids=(4, 3) if marked else (),
    )
    written = filled(config, seed, dtype)
    extras = filled_extras(config.dim, seed + 1, dtype) if quiet else None
    settings = {"embedding_scale": 100.0, "thoughts": 9, "ahead": 4} if quiet else None
    with tempfile.TemporaryDirectory() as name:
        save(name, config, written, extras, settings)
        if limit is not None:
            shard(Path(name), limit)
        assert read_model_config(name) == config
        assert read_settings(name) == settings
        read, more = blank(written), blank(extras) if quiet else None
        assert load_into(name, read, more) is quiet
        stored = list(stored_tensors(name).values())
    assert_same_bits(read, written)
    if quiet:
        assert_same_bits(more, extras)
    assert {tensor.dtype for tensor in stored} == {dtype}
    one_file = {tensor.file.name for tensor in stored} == {"model.safetensors"}
    assert one_file == (limit is None)


@pytest.mark.parametrize("case", ["mistral_gqa", "mistral_gqa_sharded", "mistral_window"])
def test_a_stock_checkpoint_is_written_again_as_it_was(case, tmp_path):
    config = read_model_config(GOLDEN / case)
    parameters = blank(filled(config, 0))
    load_into(GOLDEN / case, parameters)
    save(tmp_path, config, parameters)
    shards = {
        f.name: load_file(f) for f in (GOLDEN / case).glob("model*.safetensors") if f.is_file()
    }
    stock = {n: t for shard in shards.values() for n, t in shard.items()}
    assert_same_bits(load_file(tmp_path / "model.safetensors"), stock)
    theirs = json.loads((GOLDEN / case / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    assert {k: written.get(k) for k in theirs} | {"transformers_version": "4.37.2"} == theirs
    mode = (tmp_path / "model.safetensors").stat().st_mode
    assert mode & 0o777 == tmp_path.stat().st_mode & 0o666  # as open as the folder


def test_the_released_quietstar_layout_is_read_and_written(tmp_path):
    official = load_file(GOLDEN / "qs1_min.safetensors")
    official = {n[2:]: t for n, t in official.items() if n.startswith("w/")}
    for name in ("start_embedding", "end_embedding"):
        official[name][1] = 0  # never used; we write zeros there
    facts = json.loads((GOLDEN / "qs1_min.json").read_text())
    config = ModelConfig(
        vocab_size=facts["V"],
        dim=facts["h"],
        layers=facts["layers"],
        heads=facts["heads"],
        kv_heads=facts["kv"],
        head_dim=facts["h"] // facts["heads"],
        hidden_dim=facts["inter"],
        norm_eps=facts["rms_norm_eps"],
        thought_ids=(facts["start_id"], facts["end_id"]),
    )
    given = tmp_path / "given"
    save(given, config, filled(config, 0))
    save_file(official, given / "model.safetensors")
    parameters, extras = blank(filled(config, 0)), blank(filled_extras(32, 0))
    assert load_into(given, parameters) is True  # the plain language model of it
    assert load_into(given, parameters, extras) is True
    assert read_settings(given) is None
    assert read_model_config(given).thought_ids == (95, 96)
    assert torch.equal(extras["start"], official["start_embedding"][0])
    save(tmp_path / "again", config, parameters, extras)
    assert_same_bits(load_file(tmp_path / "again" / "model.safetensors"), official)
    flags = json.loads((tmp_path / "again" / "config.json").read_text())
    assert flags["max_thoughts"] == 10
    released = ("merged_talk_heads", "merged_lm_and_think_heads", "use_concat_talk_head")
    released += ("use_shallow_think", "use_complex_talk_head", "use_weighted_talk_head")
    assert all(flags[name] is True for name in released)
    added = json.loads((tmp_path / "again" / "added_tokens.json").read_text())
    assert added == {"<|startthought|>": 95, "<|endthought|>": 96}


def test_save_refuses_what_could_not_be_read_back(folder, tmp_path):
    parameters, extras = filled(SMALL, 0), filled_extras(12, 0)
    with pytest.raises(ValueError, match="holds weights already"):
        save(folder, SMALL, parameters)
    wrong = {n: t for n, t in parameters.items() if n != "norm.weight"}
    with pytest.raises(ValueError, match=r"1 tensor missing \(norm.weight\)"):
        save(tmp_path / "x", SMALL, wrong)
    with pytest.raises(ValueError, match=r"another shape \(norm.weight: expected \[12\], found"):
        save(tmp_path / "x", SMALL, parameters | {"norm.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"2 tensors unexpected \(end, start\)"):
        save(tmp_path / "x", SMALL, parameters | {n: extras[n] for n in ("start", "end")})
    with pytest.raises(ValueError, match=r"another shape \(start: expected \[12\], found \[13\]\)"):
        save(tmp_path / "x", SMALL, parameters, extras | {"start": torch.ones(13)})
    del extras["mixer.0.bias"]
    with pytest.raises(ValueError, match=r"1 tensor missing \(mixer.0.bias\)"):
        save(tmp_path / "x", SMALL, parameters, extras)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OSError, match="cannot be written: No space left.*model.safetensors"):
        save(tmp_path, SMALL, filled(SMALL, 0))
    assert not (tmp_path / "config.json").exists()


# Reading


@pytest.mark.parametrize("tied", [False, True])
def test_quiet_star_adds_the_tensors_of_the_released_model_and_no_other(tied):
    model = Mistral(dataclasses.replace(SMALL, tied=tied))
    names = {name for name, _ in QuietStar(model, ThoughtConfig()).named_parameters()}
    ours = {f"model.{name}" for name in meta_parameters(model.config)}
    assert names == ours | QUIET_NAMES.keys()


def test_extras_are_left_alone_where_the_folder_has_none(folder):
    extras = filled_extras(12, 3)
    before = {n: t.clone() for n, t in extras.items()}
    assert load_into(folder, blank(filled(SMALL, 0)), extras) is False
    assert_same_bits(extras, before)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_tensors_take_the_dtype_of_their_destination(stored, wanted, tmp_path):
    written = filled(SMALL, 0, stored)
    save(tmp_path, SMALL, written)
    read = blank(written, wanted)
    load_into(tmp_path, read)
    assert_same_bits(read, {n: t.to(wanted) for n, t in written.items()})
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(stored)[6:]


def test_parameters_that_need_gradients_are_loaded_in_place(folder):
    model = Mistral(SMALL)
    embedding = model.tok_embeddings.weight
    load_into(folder, dict(model.named_parameters()))
    assert model.tok_embeddings.weight is embedding
    assert embedding.requires_grad
    assert embedding.is_leaf
    assert_same_bits({n: p.data for n, p in model.named_parameters()}, filled(SMALL, 0))


MEASURE = """
import sys, torch
from qs.model.config import read_model_config
from qs.model.weights import load_into, meta_parameters

def peak():  # VmHWM belongs to this process alone, unlike ru_maxrss
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

config = read_model_config(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
ours = {n: torch.zeros(p.shape, dtype=dtype) for n, p in meta_parameters(config).items()}
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
    parameters = meta_parameters(config)
    save(tmp_path, config, {n: torch.ones(()).expand(p.shape) for n, p in parameters.items()})
    shard(tmp_path, 40_000_000)
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
    read = blank(filled(SMALL, 0))
    load_into(folder, read)
    assert_same_bits(read, filled(SMALL, 0))


def test_files_beside_the_weights_are_not_read(folder):
    save_file({"x": torch.ones(1)}, folder / "optimizer.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    load_into(folder, blank(filled(SMALL, 0)))


def test_old_rotary_buffers_are_ignored(folder):
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda t: t.update({name: torch.ones(3)}))
    read = blank(filled(SMALL, 0))
    load_into(folder, read)
    assert_same_bits(read, filled(SMALL, 0))


@pytest.mark.parametrize("stored", ["embedding", "head", "both"])
def test_a_tied_model_is_read_whichever_copy_is_stored(stored, tmp_path):
    config = dataclasses.replace(SMALL, tied=True)
    written = filled(config, 0)
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
    save(tmp_path, config, filled(config, 0))
    edit(tmp_path, lambda t: t.update({HEAD: torch.ones(11, 12)}))
    with pytest.raises(ValueError, match="no lm_head.weight or one equal to model.embed_tokens"):
        load_into(tmp_path, blank(filled(config, 0)))


def test_everything_that_does_not_fit_is_listed_before_anything_is_copied(folder):
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if "layers.1" in n]:
            del tensors[name]
        tensors["lm_head.bias"] = torch.ones(11)
        tensors[Q] = torch.ones(24, 13)

    edit(folder, change)
    read = blank(filled(SMALL, 0))
    with pytest.raises(ValueError, match="is this the model of its config file") as error:
        load_into(folder, read)
    message = str(error.value)
    assert message.startswith(f"{folder}: 9 tensors missing (model.layers.1.input_layernorm.weight")
    assert ", ...), 1 tensor unexpected (lm_head.bias), 1 tensor of another shape" in message
    assert f"{Q}: expected [24, 12], found [24, 13]" in message
    assert all(t.isnan().all() for t in read.values())


@pytest.mark.parametrize("name", ["model.norm.weight", "talk_head.0.0.bias", "other"])
def test_tensors_that_are_no_floats_are_refused(folder, name):
    edit(folder, lambda t: t.update({name: torch.ones(12, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=f"{name} to be F64, F32, F16, BF16, found I8; get a"):
        load_into(folder, blank(filled(SMALL, 0)))


@pytest.mark.parametrize("asked", [True, False])
def test_some_but_not_all_extras_are_refused(asked, tmp_path):
    parameters, extras = filled(SMALL, 0), filled_extras(12, 1)
    save(tmp_path, SMALL, parameters, extras)
    edit(tmp_path, lambda t: t.pop("talk_head.0.2.bias"))
    with pytest.raises(ValueError, match=r"1 tensor missing \(talk_head.0.2.bias\)"):
        load_into(tmp_path, parameters, extras if asked else None)


def test_extras_of_another_width_are_refused(tmp_path):
    parameters, extras = filled(SMALL, 0), filled_extras(12, 1)
    save(tmp_path, SMALL, parameters, extras)
    with pytest.raises(ValueError, match="7 tensors of another shape") as error:
        load_into(tmp_path, parameters, filled_extras(10, 1))
    assert "(end_embedding: expected [2, 10], found [2, 12], " in str(error.value)


def test_damaged_or_missing_files_are_refused(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for bad in (b"", content[:100], content[:-4], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="model.safetensors: expected a safetensors file"):
            stored_tensors(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pytorch_model.bin; pickled weights are never opened"):
        stored_tensors(folder)


def test_a_damaged_index_is_refused(tmp_path):
    save(tmp_path, SMALL, filled(SMALL, 0))
    good = shard(tmp_path, 1000)
    index = tmp_path / "model.safetensors.index.json"
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
        load_into(tmp_path, blank(filled(SMALL, 0)))


def test_where_an_index_names_a_file_copies_elsewhere_do_not_count(tmp_path):
    written = filled(SMALL, 0)
    save(tmp_path, SMALL, written)
    listed = shard(tmp_path, 1000)
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
