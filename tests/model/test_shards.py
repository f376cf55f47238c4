"""shards: one file or several with an index hold the same tensors, and memory holds one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, assert_same_bits, blank, filled, filled_extras
from hypothesis import given
from hypothesis import strategies as st

from qs.model import shards
from qs.model.folders import resolve
from qs.model.weights import digest, load_into, save

SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(sizes=SIZES, largest=st.integers(1, 80), bits=st.sampled_from([torch.float64, torch.half]))
def test_tensors_are_in_order_in_as_few_files_as_hold_them(sizes, largest, bits):
    written = {f"t{i}": torch.randn(n).to(bits) for i, n in enumerate(sizes)}
    asked = []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "LARGEST", largest)
        shards.write(Path(name), "x", written, lambda n: asked.append(n) or written[n])
        files, listed = shards.files_of(Path(name), "x")
        stored = shards.headers(files, listed)
        read = {n: stored[n].read(n).clone() for n in written}
    assert asked == [*written]
    assert_same_bits(read, written)
    held = [[n for n in written if stored[n].file == file] for file in files]
    assert sum(held, []) == [*written]
    bytes_of = [[written[n].nbytes for n in names] for names in held]
    assert all(len(each) == 1 or sum(each) <= largest for each in bytes_of)
    for one, following in zip(bytes_of, bytes_of[1:], strict=False):
        assert sum(one) + following[0] > largest
    assert bool(listed) == (len(files) > 1)


def test_a_model_in_shards_has_the_stock_layout_and_is_read_and_named(tmp_path, monkeypatch):
    parameters, extras = filled(SMALL, 0), filled_extras(12, 1)
    monkeypatch.setattr(shards, "LARGEST", 2000)
    run = tmp_path / "run"
    for folder in (run / "step_000001", tmp_path / "again"):
        save(folder, SMALL, parameters, extras)
    step = resolve(run)
    assert step == run / "step_000001"
    names = sorted(path.name for path in step.iterdir())
    count = len(names) - 2
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert count > 2
    assert names == sorted(["config.json", "model.safetensors.index.json", *files])
    index = json.loads((step / "model.safetensors.index.json").read_text())
    total = sum(t.nbytes for t in (parameters | extras).values())
    total += sum(extras[n].nbytes for n in ("start", "end"))  # a row that was never used
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"].values()) == set(files)
    read = blank(parameters), blank(extras)
    assert load_into(step, *read)
    assert_same_bits(read[0] | read[1], parameters | extras)
    assert digest(step) == digest(tmp_path / "again")
    (step / "optimizer-00001-of-00002.safetensors").write_bytes(b"")
    assert digest(step) == digest(tmp_path / "again")
    (step / files[1]).write_bytes((step / files[1]).read_bytes()[:-1] + b"x")
    assert digest(step) != digest(tmp_path / "again")
    with pytest.raises(ValueError, match="holds weights already"):
        save(step, SMALL, parameters)


def test_who_does_not_write_takes_part_for_every_tensor_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, parameters = [], filled(SMALL, 0)
    save(None, SMALL, parameters, whole=lambda x: asked.append(x) or x)
    assert [*map(id, asked)] == [*map(id, parameters.values())]
    assert not [*tmp_path.iterdir()]


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from qs.model import shards
from qs.model.config import ModelConfig
from qs.model.weights import meta_parameters, save
from qs.training.checkpoint import load_optimizer, optimizer_tensors, save_optimizer
from qs.training.optimizer import MasterAdamW

def measure(work, *arguments):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = status("VmRSS")
    work(*arguments)
    return status("VmHWM") - before

def status(key):  # of this process alone, unlike ru_maxrss
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def elsewhere(shape):  # takes no memory until it is gathered
    return torch.ones(()).expand(shape)

shards.LARGEST, folder = int(sys.argv[1]), Path(sys.argv[2])
parameters = {nn.Parameter(torch.ones(1024, 1024)): str(i) for i in range(16)}
optimizer = MasterAdamW([{"params": [*parameters]}], {})
for p in parameters:
    moments = {key: elsewhere(p.shape) for key in ("exp_avg", "exp_avg_sq")}
    optimizer.state[p] = {"step": torch.ones(()), **moments}
config = ModelConfig(
    vocab_size=2048, dim=1024, layers=2, heads=8, kv_heads=8, head_dim=128, hidden_dim=2048
)
model = {n: elsewhere(p.shape) for n, p in meta_parameters(config).items()}
print(measure(save_optimizer, folder, optimizer_tensors(optimizer, parameters)))
print(measure(save, folder, config, model))
optimizer.state.clear()
moments = sum(2 * p.nbytes for p in parameters)
print(measure(load_optimizer, folder, optimizer, parameters, 1) - moments)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_checkpoint_needs_no_more_memory_than_its_largest_file(tmp_path):
    largest = 20_000_000
    command = [sys.executable, "-c", MEASURE, str(largest), str(tmp_path)]
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is no longer resident
    found = subprocess.run(
        command, env=os.environ | returned, capture_output=True, text=True, check=True
    )
    print(found.stdout)
    assert len([*tmp_path.glob("optimizer-*")]) == 8
    saved, model, loaded = map(int, found.stdout.split())
    assert 0.8 * largest <= min(saved, model)  # or nothing was measured
    assert max(saved, model, loaded) <= 1.2 * largest


def test_a_pipe_that_an_index_names_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files, listed = shards.files_of(tmp_path, "model")
    with pytest.raises(ValueError, match=r"a\.safetensors: expected .* found: .*no plain file"):
        shards.headers(files, listed)


def test_a_path_that_safetensors_cannot_open_is_told_from_a_damaged_file(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shards.write(folder, "x", {"t": torch.zeros(1)}, lambda name: torch.zeros(1))
    with pytest.raises(ValueError, match="UTF-8; give what is on that path a name in UTF-8$"):
        shards.open_file(folder / "x.safetensors")
    folder = folder.rename(tmp_path / "café")
    (folder / "y.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="; get the file again$"):
        shards.open_file(folder / "y.safetensors")
    shards.open_file(folder / "x.safetensors")
