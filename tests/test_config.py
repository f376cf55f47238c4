"""config: any config survives JSON; what is out of range is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings import OUT_OF_RANGE, SETTINGS, configs

from qs.config import GROUPS, Config, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.presets import PRESETS
from qs.settings import check_names, read_record


@given(config=configs())
def test_any_config_survives_json(config: Config):
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_numbers_of_numpy_are_settings_and_survive_json():
    config = Config().changed(
        thoughts=np.int64(3), sample_temperature=np.float32(0.5), rationalize=np.bool_(False)
    )
    assert config == Config().changed(thoughts=3, sample_temperature=0.5, rationalize=False)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    for changes, message in (
        ({"thoughts": np.int64(-1)}, "--thoughts must be at least 0, got -1"),
        ({"thoughts": np.float64(1.5)}, "--thoughts: expected int, found 1.5"),
        ({"thoughts": np.arange(2)}, "--thoughts: expected int, found array"),
        ({"lr": np.float32("nan")}, "--lr: expected a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            Config().changed(**changes)


def test_settings_have_different_names_so_that_each_is_one_flag():
    names = [f.name for _, f, _ in SETTINGS]
    assert len(set(names)) == len(names)
    assert "preset" not in names


def test_published_preset_has_the_published_numbers():
    config = PRESETS["published"]
    thought = {
        "thoughts": 9,
        "ahead": 4,
        "samples": 2,
        "beta": 1e6,
        "base_weight": 0.5,
        "baseline": "mean",
        "keep_negative": False,
        "sample_temperature": 1.0,
        "policy_temperature": 3.0,
        "embedding_scale": 100.0,
        "start_text": "---",
        "anchors": "all",
    }
    optim = {"lr": 1e-6, "warmup": 20, "weight_decay": 0.001, "clip": 1.0}
    run = {"seq": 256, "batch": 8, "steps": 100, "objective": "quiet"}
    for group, expected in ((config.thought, thought), (config.optim, optim), (config.run, run)):
        assert {name: getattr(group, name) for name in expected} == expected


@pytest.mark.parametrize(("group", "changes", "message"), OUT_OF_RANGE)
def test_settings_out_of_range_are_refused(group: type, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        group(**changes)
    with pytest.raises(ValueError, match=message):
        Config().changed(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 1, "beta": 0.0},
        {"samples": 1, "baseline": "none"},
        {"thoughts": 0, "beta": 0.0},
        {"sample_temperature": 0.0, "beta": 0.0},
        {"mix_space": "probability", "mix_weight": "sigmoid"},
        {"anchors": "uncertain", "anchor_share": 0.5},
    ],
)
def test_what_a_refusal_proposes_is_accepted(changes: dict[str, Any]):
    ThoughtConfig(**changes)


def test_true_tokens_ahead_must_fit_in_a_row():
    run = RunConfig(seq=4)
    with pytest.raises(ValueError, match="--ahead 4 does not fit in rows of --seq 4 tokens"):
        Config(run=run)
    Config(run=dataclasses.replace(run, objective="plain"))
    Config(run=run, thought=ThoughtConfig(ahead=3))


def test_stages_share_the_steps_and_stay_within_what_memory_is_counted_for():
    config = Config(run=RunConfig(curriculum="8-4,4-2,0", steps=7))
    names = [config.stage(step)[0] for step in range(7)]
    assert names == ["8-4", "8-4", "8-4", "4-2", "4-2", "0", "0"]
    shapes = [(s.thought.thoughts, s.thought.ahead, s.run.thinks) for _, s in config.stages]
    assert shapes == [(8, 4, True), (4, 2, True), (9, 4, False)]
    assert Config().stage(99) == ("", Config())
    with pytest.raises(ValueError, match="--curriculum 10-4 goes beyond --thoughts 9 and --ahead"):
        Config(run=RunConfig(curriculum="10-4,0"))
    with pytest.raises(ValueError, match="--steps 2 leaves out stages of .* 8-4,4-2,0: .* 3$"):
        RunConfig(curriculum="8-4,4-2,0", steps=2)
    stages = Config(run=RunConfig(curriculum="8-4,4-2,0", steps=3))
    assert [stages.stage(step)[0] for step in range(3)] == ["8-4", "4-2", "0"]


def test_the_stages_of_0_at_the_end_are_distilled_with_the_thoughts_of_the_stage_before():
    config = Config(run=RunConfig(curriculum="8-4,4-2,0,0", steps=7, distil=0.25))
    thinking, *zeros = [stage for _, stage in config.stages[1:]]
    assert (thinking.run.distil, thinking.thought.samples, config.distilled_from) == (0, 2, 4)
    for stage in zeros:
        thought = stage.thinking
        assert (thought.thoughts, thought.ahead, thought.samples) == (4, 1, 1)
        assert (thought.base_weight, thought.beta, stage.run.distil) == (0.75, 0, 0.25)
    shares = [config.stage(step)[1].run.distil for step in range(7)]
    assert shares == [0] * 4 + [0.25] * 3
    alone = Config(run=RunConfig(curriculum="0", steps=7, distil=1.0))
    assert (alone.stage(0)[1].thought.thoughts, alone.distilled_from) == (9, 0)
    assert Config(run=RunConfig(curriculum="4-2,0", steps=7)).distilled_from == 7


# JSON names


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_unknown_and_missing_names_in_json_are_listed(group: str):
    stored = Config().to_json()
    first = next(iter(stored[group]))
    del stored[group][first]
    stored[group]["colour"] = 1
    with pytest.raises(
        ValueError, match=rf"config.{group}: 1 missing \({first}\), 1 unexpected \(colour\)"
    ):
        Config.from_json(stored)
    stored = Config().to_json()
    stored["more"] = stored.pop(group)
    with pytest.raises(ValueError, match=rf"config: 1 missing \({group}\), 1 unexpected \(more\)"):
        Config.from_json(stored)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("thought", "baseline", "median"),
        ("thought", "thoughts", 2.5),
        ("thought", "keep_negative", 1),
        ("optim", "lr", "fast"),
        ("optim", "clip", None),
        ("run", "steps", True),
        ("run", "out", 3),
        ("run", "compile", "yes"),
    ],
)
def test_json_values_that_no_flag_would_give_are_refused(group: str, name: str, value: Any):
    stored = Config().to_json()
    stored[group][name] = value
    with pytest.raises(ValueError, match=rf"config.{group}.{name}: expected .*, found {value!r}"):
        Config.from_json(stored)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thoughts": "5"}, "--thoughts: expected int, found '5'"),
        ({"steps": 2.0}, "--steps: expected int, found 2.0"),
        ({"keep_negative": 1}, "--keep-negative: expected bool, found 1"),
        ({"device": "gpu"}, "--device: expected 'auto' or 'cpu' or 'cuda', found 'gpu'"),
        ({"moments": "4bit"}, "--moments: expected 'float32' or '8bit' or None, found '4bit'"),
        ({"data": None}, "--data: expected str, found None"),
    ],
)
def test_settings_that_are_made_in_python_are_of_their_types(changes, said):
    with pytest.raises(ValueError, match=said):
        Config().changed(**changes)
    assert Config().changed(lr=1).optim.lr == 1  # a whole number is a number


@given(found=st.sets(st.sampled_from("abcde")), expected=st.sets(st.sampled_from("abcde")))
def test_names_are_checked_both_ways(found: set[str], expected: set[str]):
    if found == expected:
        check_names("here", found, expected)
        return
    with pytest.raises(ValueError, match="here: ") as error:
        check_names("here", found, expected)
    missing, extra = str(error.value).split("missing")
    assert missing.endswith(f" {len(expected - found)} ")
    for name in expected - found:
        assert name in extra.split("unexpected")[0]


# The model's shape


def test_forbidden_ids_are_bos_padding_and_the_thought_marks():
    sizes = {"dim": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "hidden_dim": 8}
    assert ModelConfig(9, **sizes).forbidden == (1,)
    assert ModelConfig(9, **sizes, bos_id=None).forbidden == ()
    assert ModelConfig(9, **sizes, pad_id=0).forbidden == (0, 1)
    assert ModelConfig(9, **sizes, pad_id=1, thought_ids=(7, 6)).forbidden == (1, 6, 7)


def test_a_limit_of_tokens_is_called_one():
    assert ThoughtConfig(thoughts=8, ahead=1).lengths == "n 8, m 1, K 2"
    assert ThoughtConfig(thoughts=8, end="drawn").lengths.startswith("n 8 at most, m 4")


def test_a_record_takes_values_of_its_types_alone():
    @dataclasses.dataclass
    class Record:
        name: str
        size: float | None = None
        ends: list[float] | None = None

    values = {"name": "a", "size": 1, "ends": [0.5, 1]}
    assert read_record("x", Record, values) == Record("a", 1, [0.5, 1])
    assert read_record("x", Record, {"name": "a"}) == Record("a")
    for wrong in (
        {"name": 1},
        {"size": True},
        {"size": "1"},
        {"ends": ["x"]},
        {"ends": {}},
        {"x": 1},
    ):
        with pytest.raises(ValueError, match=f"x.*{next(iter(wrong))}"):
            read_record("x", Record, {"name": "a"} | wrong)
