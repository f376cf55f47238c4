"""folders: a name means one folder; what cannot be read is refused by its cause, in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import SMALL, as_mistral, filled, run_folder, shard

from qs.config import Config
from qs.files import new_run
from qs.model.config import read_model_config
from qs.model.folders import INDEX, resolve
from qs.model.weights import save, stored_tensors


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file, to be damaged."""
    save(tmp_path / "small", SMALL, filled(SMALL, 0))
    return tmp_path / "small"


def test_names_resolve_to_folders_and_runs_to_their_newest_complete_step(tmp_path):
    run = run_folder(tmp_path)
    step = run / "step_000100"
    assert resolve(run) == resolve(str(run)) == resolve("run", root=tmp_path) == step
    assert resolve(step) == step
    (tmp_path / "unfinished" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="found none; no checkpoint of .*unfinished is whole"):
        resolve("unfinished", root=tmp_path)


def test_a_run_that_has_saved_nothing_yet_is_no_model(tmp_path):
    run = new_run(tmp_path, "run", Config())
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run: expected a run that has saved a checkpoint"):
        resolve(run)


def test_a_missing_checkpoint_is_refused_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError, match="nothing: expected a checkpoint, found no such folder"):
        resolve("nothing", root=tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ValueError, match=r"\(tiny\); did you mean tiny\?"):
        resolve("tny", root=tmp_path)
    for name, command in {
        "mistral-7b": "hf download mistralai/Mistral-7B-v0.1 --local-dir weights/mistral-7b "
        "--include '*.json' --include tokenizer.model --include 'model-*.safetensors'",
        "quietstar-8-ahead": "hf download ezelikman/quietstar-8-ahead "
        "--local-dir weights/quietstar-8-ahead",
    }.items():
        with pytest.raises(ValueError, match=re.escape(command) + "$"):
            resolve(name, root=tmp_path)


def test_the_one_snapshot_of_a_hugging_face_cache_is_followed_and_several_are_named(tmp_path):
    cache = tmp_path / "models--x--y"
    first = cache / "snapshots" / "1a"
    first.mkdir(parents=True)
    (cache / "refs").mkdir()
    assert resolve(cache) == first
    (cache / "snapshots" / "2b").mkdir()
    with pytest.raises(ValueError, match=f"found 2; give one of {first}, .*2b$"):
        resolve(cache)


def test_a_folder_that_only_holds_runs_is_refused_with_their_names(tmp_path):
    run = run_folder(tmp_path / "demo")
    with pytest.raises(ValueError, match=f"demo: .* found a folder of runs; give .* \\({run}\\)$"):
        resolve(tmp_path / "demo")
    (run / "inner" / "step_000001").mkdir(parents=True)
    assert resolve(run) == run / "step_000100"
    (tmp_path / "demo" / "config.json").touch()  # a checkpoint, whatever lies beside it
    assert resolve(tmp_path / "demo") == tmp_path / "demo"


def test_shards_without_their_index_are_refused(folder):
    shard(folder, 1000)
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=r"found model-00001-of-\d+.safetensors without model.*in"):
        stored_tensors(folder)


@pytest.mark.parametrize("described", [True, False])
def test_consolidated_weights_without_params_are_refused(folder, described):
    config = (folder / "config.json").read_text()
    as_mistral(folder)
    (folder / "params.json").unlink()
    if described:
        (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="found consolidated.00.safetensors without params.json"):
        stored_tensors(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_model.safetensors"], "an adapter .LoRA. of x/base alone; merge it"),
        (["adapter_model.bin"], "an adapter .LoRA. of x/base alone; merge it"),
        (["pytorch_model.bin"], "pytorch_model.bin; pickled weights are never opened"),
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth; pickled weights are never"),
        (["model.pt"], "model.pt; pickled weights are never opened"),
        (["some.gguf"], "some.gguf; get the checkpoint that it was made from"),
        (["readme.md"], "found none; give the folder that holds the weights"),
    ],
)
def test_what_is_there_instead_of_weights_is_named(tmp_path, files, message):
    for file in files:
        (tmp_path / file).write_text("{}")
        if file.startswith("adapter"):
            about = {"peft_type": "LORA", "base_model_name_or_path": "x/base"}
            (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    for read in (read_model_config, stored_tensors):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}: expected model.safetensors, ")
        assert "\n" not in str(error.value)
