"""config: any config survives the command line and JSON; what is out of range is refused."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.cli import parse
from qs.config import GROUPS, PRESETS, Config, OptimConfig, RunConfig, ThoughtConfig, check_names
from qs.model.config import ModelConfig

SETTINGS = [
    (name, f, typing.get_type_hints(group)[f.name])
    for name, group in GROUPS.items()
    for f in dataclasses.fields(group)
]


def values(hint: Any) -> st.SearchStrategy:
    """Values of a setting's type, in range or not."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is type(None):
        return st.none()
    numbers = {int: st.integers(-1, 9) | st.integers(), float: st.floats(0, 1) | st.floats()}
    return {bool: st.booleans(), str: st.text(), **numbers}[hint]


@st.composite
def configs(draw) -> Config:
    """Any preset with any settings changed, leaving out the changes that are refused."""
    config = draw(st.sampled_from(list(PRESETS.values())))
    for name, f, hint in draw(st.lists(st.sampled_from(SETTINGS), max_size=30)):
        try:
            group = dataclasses.replace(getattr(config, name), **{f.name: draw(values(hint))})
            config = dataclasses.replace(config, **{name: group})
        except ValueError:
            continue
    return config


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(allow_abbrev=False)


@given(config=configs(), preset=st.sampled_from(sorted(PRESETS)))
def test_any_config_survives_the_command_line(config: Config, preset: str):
    args = config.to_args()
    assert parse(args, parser(), preset) == config
    assert parse([f"--preset={preset}", *args], parser()) == config


@given(config=configs())
def test_any_config_survives_json(config: Config):
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("name", "f"), [(name, f) for name, f, _ in SETTINGS])
def test_every_setting_is_a_flag_with_a_help_sentence(name: str, f: dataclasses.Field):
    made = parser()
    parse([], made)
    shown = "".join(made.format_help().split())
    assert len(f.metadata["help"]) > 10
    assert "".join(f.metadata["help"].split()) in shown
    assert f"--{f.name.replace('_', '-')}" in shown


def test_settings_have_different_names_so_that_each_is_one_flag():
    names = [f.name for _, f, _ in SETTINGS]
    assert len(set(names)) == len(names)
    assert "preset" not in names


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_what_no_flag_changes(preset: str):
    assert parse([], parser(), preset) == PRESETS[preset]
    assert parse([f"--preset={preset}"], parser()) == PRESETS[preset]
    changed = parse([f"--preset={preset}", "--ahead=3"], parser())
    assert changed.thought == dataclasses.replace(PRESETS[preset].thought, ahead=3)
    assert changed.run == PRESETS[preset].run


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


@pytest.mark.parametrize("flag", ["--thought=3", "--tho=3", "--no-recomp", "--see=1"])
def test_abbreviated_flags_are_refused(flag: str, capsys):
    with pytest.raises(SystemExit):
        parse([flag], parser())
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preset=best", "invalid choice: 'best'"),
        ("--baseline=median", "invalid choice: 'median'"),
        ("--thoughts=2.5", "invalid int value: '2.5'"),
        ("--lr=fast", "invalid float value: 'fast'"),
        ("--recompute=yes", "ignored explicit argument 'yes'"),
    ],
)
def test_values_of_another_kind_are_refused(flag: str, message: str, capsys):
    with pytest.raises(SystemExit):
        parse([flag], parser())
    assert message in capsys.readouterr().err


nan = float("nan")


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        (ThoughtConfig, {"thoughts": -1}, "--thoughts must be at least 0, got -1"),
        (ThoughtConfig, {"ahead": 0}, "--ahead must be at least 1, got 0"),
        (ThoughtConfig, {"samples": 0}, "--samples must be at least 1, got 0"),
        (ThoughtConfig, {"beta": -1.0}, "--beta must be at least 0, got -1"),
        (ThoughtConfig, {"beta": nan}, "--beta must be at least 0, got nan"),
        (ThoughtConfig, {"sample_temperature": -0.1}, "--sample-temperature must be at least 0"),
        (ThoughtConfig, {"policy_temperature": 0.0}, "--policy-temperature must be above 0, got 0"),
        (ThoughtConfig, {"embedding_scale": 0.0}, "--embedding-scale must be above 0, got 0"),
        (ThoughtConfig, {"anchor_share": 0.0}, "--anchor-share must be above 0, got 0"),
        (ThoughtConfig, {"anchor_share": 1.5}, r"--anchor-share is a share in \(0, 1\], got 1.5"),
        (ThoughtConfig, {"anchor_share": 0.5}, "--anchor-share 0.5 needs --anchors random or unc"),
        (ThoughtConfig, {"base_weight": 1.1}, r"--base-weight is a share in \[0, 1\], got 1.1"),
        (ThoughtConfig, {"base_weight": nan}, r"--base-weight is a share in \[0, 1\], got nan"),
        (ThoughtConfig, {"samples": 1}, "--samples 1 leaves the mean baseline nothing to compare"),
        (ThoughtConfig, {"thoughts": 0}, "--thoughts 0 leaves REINFORCE no token to reward"),
        (ThoughtConfig, {"sample_temperature": 0.0}, r"--sample-temperature 0 \(greedy\) makes"),
        (ThoughtConfig, {"mix_space": "probability"}, "probability needs --mix-weight sigmoid"),
        (OptimConfig, {"lr": -1.0}, "--lr must be at least 0, got -1"),
        (OptimConfig, {"lr": nan}, "--lr must be at least 0, got nan"),
        (OptimConfig, {"mixer_lr": -1.0}, "--mixer-lr must be at least 0, got -1"),
        (OptimConfig, {"thought_lr": -1.0}, "--thought-lr must be at least 0, got -1"),
        (OptimConfig, {"warmup": -1}, "--warmup must be at least 0, got -1"),
        (OptimConfig, {"weight_decay": -1.0}, "--weight-decay must be at least 0, got -1"),
        (OptimConfig, {"clip": 0.0}, "--clip must be above 0, got 0"),
        (RunConfig, {"seq": 1}, "--seq must be at least 2, got 1"),
        (RunConfig, {"batch": 0}, "--batch must be at least 1, got 0"),
        (RunConfig, {"micro_batch": -1}, "--micro-batch must be at least 0, got -1"),
        (RunConfig, {"micro_batch": 3, "batch": 8}, "--micro-batch 3 does not divide --batch 8"),
        (RunConfig, {"steps": 0}, "--steps must be at least 1, got 0"),
        (RunConfig, {"save_every": -1}, "--save-every must be at least 0, got -1"),
        (RunConfig, {"grad_norms_every": -1}, "--grad-norms-every must be at least 0, got -1"),
        (RunConfig, {"eval_rows": -1}, "--eval-rows must be at least 0, got -1"),
        (RunConfig, {"seed": -1}, "--seed must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(group: type, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        group(**changes)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    with pytest.raises(ValueError, match=message):
        parse(flags, parser())


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


def test_data_of_ones_own_starts_from_the_published_settings():
    assert parse([], parser()) == PRESETS["tiny"]
    assert parse(["--data=tiny", "--steps=3"], parser()).thought == PRESETS["tiny"].thought
    own = parse(["--data=owm", "--thoughts=16"], parser())
    assert own.thought == dataclasses.replace(PRESETS["published"].thought, thoughts=16)
    assert (own.run.data, own.run.weights) == ("owm", "mistral-7b")
    assert parse(["--data=owm", "--preset=tiny"], parser()).thought == PRESETS["tiny"].thought
