"""Every setting, once: frozen dataclasses from which flags, presets and JSON are derived.

Those of a thought are in `qs/thinking.py`. A field carries its help sentence and limits
(`qs/settings.py`); `qs/cli.py` turns the fields into flags, and `Config.to_json` / `from_json`
write and read the run folder's `config.json`. Symbols are those of the paper: n thought tokens, m
true tokens ahead, K thoughts per position.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from qs.settings import MOST, check_limits, check_names, check_types, setting
from qs.thinking import ThoughtConfig

TOKENS = 2**27  # of a step
STAGE = r"0|[1-9]\d{0,3}-[1-9]\d{0,3}"  # of a curriculum


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = setting(1e-6, "learning rate of the language model", least=0, most=1e3)
    mixer_lr: float = setting(1e-6, "learning rate of the mixing head", least=0, most=1e3)
    thought_lr: float = setting(
        1e-6, "learning rate of the stored start and end vectors", least=0, most=1e3
    )
    warmup: int = setting(20, "steps over which the learning rates rise from 0", least=0)
    decay: Literal["constant", "cosine"] = setting("constant", "learning rate after the warm-up")
    beta2: float = setting(0.999, "AdamW's second moment: how slowly it forgets", least=0)
    weight_decay: float = setting(0.001, "AdamW weight decay of matrices", least=0, most=1e3)
    clip: float = setting(1.0, "largest global gradient norm", above=0, most=1e30)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.beta2 >= 1:
            raise ValueError(f"--beta2 must be below 1, got {self.beta2}")


TITLES = {
    "quiet": "Quiet-STaR",
    "plain": "next-token training",
    "pause": "pause training",
    "star": "STaR",
}


@dataclass(frozen=True)
class RunConfig:
    """What is trained on what, where, and for how long."""

    objective: Literal["quiet", "plain", "pause", "star"] = setting(
        "quiet",
        "quiet: Quiet-STaR; plain: next-token training; pause: a learned pause, n times; "
        "star: rationales for question sets (--task)",
    )
    data: str = setting("owm", "folder made by `python -m qs.data prepare`, or its name in data/")
    weights: str = setting("mistral-7b", "folder of a checkpoint or a run, or its name in weights/")
    seq: int = setting(256, "T: tokens in a row", least=2, most=2**20)
    batch: int = setting(8, "rows in one optimiser step", least=1, most=2**20)
    micro_batch: int = setting(0, "rows that think at a time (0: all); changes no results", least=0)
    activations: int | None = setting(
        None,
        "MiB of activations at a time (0: all); by default 128 on a CPU, or more for large models, "
        "and what is left on CUDA",
        least=0,
        later=True,
    )
    steps: int = setting(100, "optimiser steps", least=1)
    curriculum: str = setting(
        "",
        "stages of equally many steps, each n-m of its thoughts, or 0 without any: "
        "16-8,12-4,8-4,0 (Fast Quiet-STaR); --thoughts and --ahead are then those of measuring",
        later=True,
    )
    distil: float = setting(
        0.0,
        "share of the loss of a curriculum's last stages, those of 0, that is learning the mixed "
        "prediction of the weights that last thought; the rest is of the true tokens",
        least=0,
        most=1,
        later=True,
    )
    seed: int = setting(0, "seed of data order, thoughts and new parameters", least=0, most=2**128)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "arithmetic; auto: bfloat16 on CUDA, float32 on CPU; what is trained stays float32"
    )
    compile: bool | None = setting(None, "torch.compile every layer; by default on CUDA only")
    recompute: bool | None = setting(
        None, "recompute layers in the backward pass; by default where they do not fit otherwise"
    )
    offload: bool | None = setting(
        None, "keep the optimiser in host memory; by default where the device is full", later=True
    )
    moments: Literal["float32", "8bit"] | None = setting(
        None,
        "AdamW's moments; 8bit: and gradients of layers in their dtype; by default where the host "
        "has no room for float32 ones that the device has none for",
        later=True,
    )
    save_every: int = setting(
        0, "steps between checkpoints (0: by --save-minutes and at the end)", least=0
    )
    save_minutes: float = setting(
        30.0, "minutes between checkpoints at most (0: no limit)", least=0, later=True
    )
    keep: int = setting(
        2,
        "checkpoints kept: older ones are removed once a new one is whole (0: all are kept)",
        least=0,
        later=True,
    )
    grad_norms_every: int = setting(
        20, "steps between gradient norms by loss term, 1.5 steps' work each (0: never)", least=0
    )
    eval_rows: int = setting(
        32, "held-out rows evaluated before and after (0: none)", least=0, most=2**20
    )
    tensorboard: bool = setting(
        False, "write the numbers of log.jsonl for TensorBoard too, into the run folder", later=True
    )
    out: str = setting("runs", "folder that run folders are made in")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.batch * self.seq > TOKENS:
            raise ValueError(
                f"--batch {self.batch} of --seq {self.seq} are {self.batch * self.seq:,} tokens a "
                f"step, expected at most {TOKENS:,}; lower one"
            )
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"--micro-batch {self.micro_batch} does not divide --batch {self.batch}"
            )
        stages = self.curriculum.split(",") if self.curriculum else []
        if wrong := [stage for stage in stages if not re.fullmatch(STAGE, stage)]:
            raise ValueError(
                f"--curriculum {self.curriculum}: expected stages n-m or 0, such as "
                f"16-8,12-4,8-4,0, found {wrong[0]!r}"
            )
        if self.steps < len(stages):
            raise ValueError(
                f"--steps {self.steps} leaves out stages of --curriculum {self.curriculum}: "
                f"expected a step for each at least, {len(stages)}"
            )
        if stages and self.objective != "quiet":
            raise ValueError(f"--curriculum is of --objective quiet, got {self.objective}")
        if self.distil and not re.fullmatch(r"([1-9][\d-]*,)*0(,0)*", self.curriculum):
            raise ValueError(
                f"--distil {self.distil}: expected a --curriculum that ends in 0, such as "
                f"16-8,8-4,0, with no 0 before, found {self.curriculum!r}"
            )

    @property
    def thinks(self) -> bool:
        """Whether the model thinks (or pauses) before every token."""
        return self.objective in ("quiet", "pause")

    @property
    def pauses(self) -> bool:
        """Whether its thoughts are pauses: equal ones, which nobody chose."""
        return self.objective == "pause"

    @property
    def bootstraps(self) -> bool:
        """Whether it is trained on rationales of its own, in rounds."""
        return self.objective == "star"

    @property
    def title(self) -> str:
        """The objective in words."""
        return TITLES[self.objective]


@dataclass(frozen=True)
class StarConfig:
    """STaR: questions, rounds, and how rationales are drawn; --steps are those of round 1."""

    task: Literal["arithmetic", "commonsense_qa", "gsm8k", "world"] = setting(
        "arithmetic", "questions; arithmetic and world (the bundled kind of text) are generated"
    )
    questions: str = setting("data", "folder of the question sets")
    rounds: int = setting(
        16, "rounds: rationales from the last model, training of the first one", least=1, most=10**4
    )
    growth: float = setting(
        1.2, "steps of a round, relative to those of the round before", least=1, most=10
    )
    problems: int = setting(
        1000, "problems in a round, drawn anew each time (0: the whole set)", least=0
    )
    test_problems: int = setting(
        100,
        "held-out problems after each round (0: the whole set); arithmetic: of each length",
        least=0,
    )
    rationalize: bool = setting(True, "where the answer is wrong, ask again with it as a hint")
    learn: Literal["rationales", "answers"] = setting(
        "rationales", "what is trained on; answers: the control without rationales"
    )
    shots: int = setting(10, "worked examples in a prompt, at most", least=0, most=1000)
    rationale_temperature: float = setting(
        0.0, "of rationales; 0 is greedy", least=0, temperature=True
    )
    rationale_tokens: int = setting(256, "tokens of a rationale, at most", least=1, most=2**20)
    rationale_batch: int = setting(32, "rationales generated at a time", least=1)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.task in ("arithmetic", "world") and not (self.problems and self.test_problems):
            raise ValueError(
                f"--task {self.task} is generated without end: give --problems and --test-problems"
            )
        if (self.rounds - 1) * math.log(self.growth) > math.log(MOST):
            raise ValueError(
                f"--growth {self.growth} makes the last of --rounds {self.rounds} more than "
                f"{MOST:,} times as long as the first; lower one"
            )
        if self.task == "world" and self.rationalize:
            raise ValueError("--task world has no hints: add --no-rationalize")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    thought: ThoughtConfig = field(default_factory=ThoughtConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    star: StarConfig = field(default_factory=StarConfig)

    def __post_init__(self) -> None:
        if self.run.thinks and self.thought.ahead >= self.run.seq:
            raise ValueError(
                f"--ahead {self.thought.ahead} does not fit in rows of --seq {self.run.seq} tokens:"
                " no thought would have its m true tokens; lower --ahead or raise --seq"
            )
        n, m = self.thought.thoughts, self.thought.ahead
        for name, stage in self.stages if "-" in self.run.curriculum else []:
            if stage.thought.thoughts > n or stage.thought.ahead > m:
                raise ValueError(
                    f"--curriculum {name} goes beyond --thoughts {n} and --ahead {m}, which memory "
                    "and positions are counted for: raise them"
                )

    @property
    def thinking(self) -> ThoughtConfig:
        """Thought settings as the objective takes them: the only ones that a model is given.

        Pauses are all equal and earn nothing; next-token training has the base term alone.
        """
        alone = {"beta": 0.0, "end": "fixed", "thought_cost": 0.0, "reference": "own"}
        if self.run.pauses:
            return dataclasses.replace(self.thought, samples=1, **alone)
        if not self.run.thinks:
            alone |= {"base_weight": 1.0, "likelihood_weight": 1.0}
            return dataclasses.replace(self.thought, **alone)
        return self.thought

    @functools.cached_property
    def stages(self) -> list[tuple[str, Config]]:
        """The curriculum's stages in their order: a name, and these settings with its n and m.

        One that is distilled has the settings of its teacher: one thought, of the stage before, is
        mixed into the next token; and its `distil` is above 0.
        """
        stages, last, share = [], self.thought.thoughts, self.run.distil
        for name in filter(None, self.run.curriculum.split(",")):
            n, _, m = name.partition("-")
            shape = {"curriculum": "", "distil": 0.0}
            if m:
                last = int(n)
                shape |= {"thoughts": last, "ahead": int(m)}
            elif share:
                shape = {"curriculum": name, "thoughts": last, "ahead": 1, "samples": 1}
                shape |= {"base_weight": 1 - share, "likelihood_weight": 1.0, "beta": 0.0}
                shape |= {"reference": "own", "thought_cost": 0.0}
            else:
                shape |= {"objective": "plain"}
            stages.append((name, self.changed(**shape)))
        return stages

    @property
    def distilled_from(self) -> int:
        """The first step (0-based) that is distilled; the number of steps where none is."""
        names = self.run.curriculum.split(",")
        first = names.index("0") if self.run.distil else len(names)
        return -(-first * self.run.steps // len(names))

    def stage(self, step: int) -> tuple[str, Config]:
        """Name and settings of a step's stage (0-based); without a curriculum "" and these."""
        stages = self.stages or [("", self)]
        return stages[step * len(stages) // self.run.steps]

    @property
    def sampled(self) -> bool:
        """Whether there are thoughts of sampled tokens: neither pauses nor nothing at all."""
        return self.run.thinks and not self.run.pauses and self.thought.thoughts > 0

    def changed(self, **settings: Any) -> Config:
        """The same with other values of settings, named as their fields are.

        Raises:
            TypeError: there is no such setting.
            ValueError: a value is out of range.
        """
        groups = {}
        for name, group in GROUPS.items():
            names = {f.name for f in dataclasses.fields(group)} & settings.keys()
            changes = {each: settings.pop(each) for each in names}
            groups[name] = dataclasses.replace(getattr(self, name), **changes)
        if settings:
            raise TypeError(f"no setting is named {', '.join(settings)}")
        return Config(**groups)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, for `json.dump`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: dict[str, dict[str, Any]]) -> Config:
        """Read back `to_json`.

        Raises:
            ValueError: names of groups or settings that do not exist or are missing.
        """
        groups = {}
        check_names("config", values, GROUPS)
        for name, group in GROUPS.items():
            fields = dataclasses.fields(group)
            later = {f.name: f.default for f in fields if f.metadata.get("later")}
            settings = later | values[name]
            check_names(f"config.{name}", settings, {f.name for f in fields})
            check_types(f"config.{name}", group, settings)
            groups[name] = group(**settings)
        return Config(**groups)


GROUPS = {"thought": ThoughtConfig, "optim": OptimConfig, "run": RunConfig, "star": StarConfig}


PADDING = -1  # the document number of padding
