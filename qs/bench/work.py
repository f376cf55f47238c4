"""What is measured: a size of model, of rows and of thoughts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import allocate, choose_placement
from qs.settings import check_limits, setting
from qs.training.plan import Plan, settle

SIZES = {  # vocabulary, dim, layers, heads, key heads, head size, inner width: of ModelConfig
    "tiny": (480, 128, 2, 4, 4, 32, 256),
    "small": (4096, 256, 4, 8, 4, 32, 512),
    "1b": (32000, 2048, 16, 32, 8, 64, 5632),
    "7b-4layers": (32000, 4096, 4, 32, 8, 128, 14336),
    "7b": (32000, 4096, 32, 32, 8, 128, 14336),
}


@dataclass(frozen=True)
class Work:
    """What is measured."""

    size: Literal["tiny", "small", "1b", "7b-4layers", "7b"] = setting("small", "of the model")
    seq: int = setting(128, "T: tokens of text in a row", least=2)
    batch: int = setting(1, "B: rows", least=1)
    thoughts: int = setting(15, "n: tokens of a thought", least=1)
    ahead: int = setting(4, "m: true tokens ahead", least=1)
    samples: int = setting(2, "K: thoughts at a position", least=1)
    anchors: Literal["all", "random", "uncertain"] = setting("all", "who thinks")
    anchor_share: float = setting(1.0, "share of the positions that think", above=0)
    questions: int = setting(16, "of evaluate, each of about T tokens", least=1)
    documents: int = setting(100_000, "of prepare", least=2)
    tokenizer: str = setting("weights/tiny", "folder with the tokenizer of evaluate and prepare")
    repeats: int = setting(5, "measurements, after a first one that is told apart", least=1)
    seconds: float = setting(60.0, "repeats of a stage end after so many, or after one", above=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: CUDA where there is one")
    compile: bool | None = setting(None, "torch.compile every layer; by default on CUDA only")
    recompute: bool | None = setting(None, "recompute layers in the backward pass (train.py's)")
    offload: bool | None = setting(None, "the optimiser in host memory (train.py's)")
    activations: int | None = setting(None, "MiB that a part keeps (train.py's)", least=0)

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def config(self) -> Config:
        """The run that does it."""
        values = dataclasses.asdict(self)
        thought, run = (
            group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values})
            for group in (ThoughtConfig, RunConfig)
        )
        return Config(thought, OptimConfig(), run)

    @property
    def shape(self) -> ModelConfig:
        """Of the model."""
        return ModelConfig(*SIZES[self.size])


def build(work: Work) -> tuple[QuietStar, Plan, Config]:
    """A random model, made on its device as training would, what was planned, and its settings."""
    placement = choose_placement(work.config.run)
    config, placement, plan = settle(work.config, work.shape, placement)
    quiet = allocate(work.shape, config, placement)
    generator = torch.Generator(placement.device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in quiet.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02, generator=generator)
            if name in quiet.masters:
                quiet.masters[name].copy_(parameter)
    return quiet, plan, config
