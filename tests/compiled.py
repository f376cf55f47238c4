"""Steps with compiled layers beside eager ones, for tests/training/test_step.py.

    TORCHINDUCTOR_CACHE_DIR=FOLDER python tests/compiled.py NORMS...

Takes a step for each of NORMS, 1 where term norms are measured, with and without recomputation, and
prints as JSON how far records and gradients are from those of eager layers, relative to them; and
how many graphs were compiled, and how many were found in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import batch

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import allocate, choose_placement
from qs.training.step import train_step

SHAPE = ModelConfig(vocab_size=11, dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden_dim=24)
CONFIG = Config(
    ThoughtConfig(thoughts=2, end="drawn", ahead=2, samples=3, beta=30.0, embedding_scale=1.0),
    OptimConfig(clip=1e9, warmup=0),
    RunConfig(micro_batch=2, batch=4, seq=7, seed=5, device="cpu"),
)


class Recorder:
    """Stands where the optimiser does and keeps the gradients that it is given."""

    def __init__(self, quiet: QuietStar):
        self.param_groups, self.quiet = [{"peak_lr": 1.0, "lr": None}], quiet

    def step(self) -> None:
        self.gradients = {n: p.grad.clone() for n, p in self.quiet.named_parameters()}


def build(compiled: bool) -> QuietStar:
    """A float32 module in which no parameter is zero, as training has it."""
    config = CONFIG.changed(compile=compiled)
    quiet = allocate(SHAPE, config, choose_placement(config.run))
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in quiet.parameters():
            parameter.normal_(0, 0.4, generator=numbers)
    return quiet


def step(quiet: QuietStar, measure: bool, recompute: bool) -> tuple[dict, dict[str, Tensor]]:
    """The record of a step, and its gradients."""
    quiet.model.recompute, recorder = recompute, Recorder(quiet)
    return train_step(quiet, recorder, *batch(1), CONFIG, 0, measure), recorder.gradients


def main(norms: list[str]) -> None:
    """Command line."""
    torch._inductor.config.cpp.simdlen = 0  # scalar code, which g++ compiles sooner
    quiet, eager = build(True), build(False)
    worst = 0.0
    for measure in map(bool, map(int, norms)):
        for recompute in (False, True):
            (record, found), (other, expected) = (
                step(q, measure, recompute) for q in (quiet, eager)
            )
            assert record.keys() == other.keys()
            far = [abs(record[key] - other[key]) / max(1e-3, abs(other[key])) for key in other]
            far += [(found[n] - x).norm().item() / x.norm().item() for n, x in expected.items()]
            worst = max(worst, *far)
    graphs = counters["aot_autograd"]
    told = {key: graphs[f"autograd_cache_{key}"] for key in ("miss", "hit")}
    print(json.dumps({"worst": worst} | told))


if __name__ == "__main__":
    main(sys.argv[1:])
