"""Settings for tests: any config, and values that are out of range."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from qs.config import GROUPS, Config, OptimConfig, RunConfig, StarConfig, ThoughtConfig
from qs.presets import PRESETS

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


nan = float("nan")
OUT_OF_RANGE = [
    (ThoughtConfig, {"thoughts": -1}, "--thoughts must be at least 0, got -1"),
    (ThoughtConfig, {"ahead": 0}, "--ahead must be at least 1, got 0"),
    (ThoughtConfig, {"samples": 0}, "--samples must be at least 1, got 0"),
    (ThoughtConfig, {"beta": -1.0}, "--beta must be at least 0, got -1"),
    (ThoughtConfig, {"beta": nan}, "--beta: expected a finite number, found nan"),
    (ThoughtConfig, {"sample_temperature": -0.1}, "--sample-temperature must be at least 0"),
    (ThoughtConfig, {"policy_temperature": 0.0}, "--policy-temperature must be at least 1e-06"),
    (ThoughtConfig, {"policy_temperature": 1e-9}, "--policy-temperature must be at least 1e-06"),
    (ThoughtConfig, {"sample_temperature": 1e-45}, "--sample-temperature must be 0 or at least 1e"),
    (StarConfig, {"rationale_temperature": 1e-7}, "--rationale-temperature must be 0 or at least"),
    (ThoughtConfig, {"embedding_scale": 0.0}, "--embedding-scale must be at least 1e-06, got 0"),
    (ThoughtConfig, {"anchor_share": 0.0}, "--anchor-share must be above 0, got 0"),
    (ThoughtConfig, {"anchor_share": 1.5}, "--anchor-share must be at most 1, got 1.5"),
    (ThoughtConfig, {"anchor_share": 0.5}, "--anchor-share 0.5 needs --anchors random or unc"),
    (ThoughtConfig, {"base_weight": 1.1}, "--base-weight must be at most 1, got 1.1"),
    (ThoughtConfig, {"base_weight": nan}, "--base-weight: expected a finite number, found nan"),
    (ThoughtConfig, {"likelihood_weight": -1.0}, "--likelihood-weight must be at least 0, got -1"),
    (ThoughtConfig, {"average_decay": 1.5}, "--average-decay must be at most 1, got 1.5"),
    (ThoughtConfig, {"reference": "average", "reward": "exact"}, "--reference average is of --rew"),
    (ThoughtConfig, {"samples": 1, "baseline": "others"}, "--samples 1 leaves the mean baseline"),
    (ThoughtConfig, {"samples": 1}, "--samples 1 leaves the mean baseline nothing to compare"),
    (ThoughtConfig, {"thoughts": 0}, "--thoughts 0 leaves REINFORCE no token to reward"),
    (ThoughtConfig, {"sample_temperature": 0.0}, r"--sample-temperature 0 \(greedy\) makes"),
    (ThoughtConfig, {"thought_cost": -0.1, "end": "drawn"}, "--thought-cost must be at least 0"),
    (ThoughtConfig, {"thought_cost": 0.1}, "--thought-cost 0.1 changes nothing where all"),
    (ThoughtConfig, {"mix_space": "probability"}, "probability needs --mix-weight sigmoid"),
    (OptimConfig, {"lr": -1.0}, "--lr must be at least 0, got -1"),
    (OptimConfig, {"lr": nan}, "--lr: expected a finite number, found nan"),
    (OptimConfig, {"lr": 1e38}, "--lr must be at most 1000.0, got 1e\\+38"),
    (OptimConfig, {"lr": float("inf")}, "--lr: expected a finite number, found inf"),
    (OptimConfig, {"beta2": 1.0}, "--beta2 must be below 1, got 1.0"),
    (OptimConfig, {"mixer_lr": -1.0}, "--mixer-lr must be at least 0, got -1"),
    (OptimConfig, {"thought_lr": -1.0}, "--thought-lr must be at least 0, got -1"),
    (OptimConfig, {"warmup": -1}, "--warmup must be at least 0, got -1"),
    (OptimConfig, {"weight_decay": -1.0}, "--weight-decay must be at least 0, got -1"),
    (OptimConfig, {"clip": 0.0}, "--clip must be above 0, got 0"),
    (RunConfig, {"seq": 1}, "--seq must be at least 2, got 1"),
    (RunConfig, {"batch": 0}, "--batch must be at least 1, got 0"),
    (RunConfig, {"batch": 10**9}, "--batch must be at most 1048576, got 1000000000"),
    (RunConfig, {"batch": 2**20, "seq": 256}, "--batch 1048576 of --seq 256 are 268,435,456 tok"),
    (RunConfig, {"seq": 2**63}, "--seq must be at most 1048576, got 9223372036854775808"),
    (RunConfig, {"steps": 10**30}, "--steps must be at most 1000000000, got 1"),
    (StarConfig, {"growth": 10.0}, "--growth 10.0 makes the last of --rounds 16 more than 1,000,0"),
    (RunConfig, {"micro_batch": -1}, "--micro-batch must be at least 0, got -1"),
    (RunConfig, {"micro_batch": 3, "batch": 8}, "--micro-batch 3 does not divide --batch 8"),
    (RunConfig, {"steps": 0}, "--steps must be at least 1, got 0"),
    (RunConfig, {"save_every": -1}, "--save-every must be at least 0, got -1"),
    (RunConfig, {"grad_norms_every": -1}, "--grad-norms-every must be at least 0, got -1"),
    (RunConfig, {"eval_rows": -1}, "--eval-rows must be at least 0, got -1"),
    (
        RunConfig,
        {"curriculum": "4-2,0-1"},
        "--curriculum 4-2,0-1: expected stages n-m or 0, .*'0-1'",
    ),
    (RunConfig, {"curriculum": "4-2,0", "objective": "pause"}, "--curriculum is of --objective qu"),
    (RunConfig, {"distil": 1.5, "curriculum": "0"}, "--distil must be at most 1, got 1.5"),
    (RunConfig, {"distil": 0.5}, "--distil 0.5: expected a --curriculum that ends .*found ''"),
    (RunConfig, {"distil": 0.5, "curriculum": "4-2"}, "--distil 0.5: expected a --curriculum that"),
    (RunConfig, {"distil": 0.5, "curriculum": "0,4-2,0"}, "with no 0 before, found '0,4-2,0'"),
    (RunConfig, {"seed": -1}, "--seed must be at least 0, got -1"),
]  # of a group: changes, and the message
