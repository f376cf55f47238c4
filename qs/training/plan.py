"""How much memory a run takes, by a formula, and what is chosen so that it fits: `choose`.

Thoughts are sampled before there are gradients, and scored in parts of some rows and some of their
anchors, so that what is kept for the backward pass of one part is all that `--activations` bounds.
Tests hold the formula to what a step was measured to take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from qs.config import Config
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Placement
from qs.quietstar.losses import LOGITS_AT_ONCE
from qs.training.work import operations

MIB, GIB = 2**20, 2**30
ACTIVATIONS = 128  # MiB, on a CPU: what its caches cannot hold costs more than reading text again
SMALL_PART = 2048  # slots: smaller matrix products do not keep a GPU busy
RESERVE, CONTEXT = 0.06, GIB  # of a device: fragments, and what CUDA and compiled code take


class Memory(NamedTuple):
    """Bytes, by kind, that one process holds.

    Attributes:
        weights: that the passes read.
        gradients: of all parameters.
        optimizer: moments, and float32 master weights where the layers' are narrower.
        activations: what one part keeps for its backward pass.
        caches: while thoughts are sampled: keys and values, and logits of the next tokens.
        logits: pieces of them while a part is scored, and the head's gradients.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    caches: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """At the peak: gradients and activations are not there while thoughts are sampled."""
        scoring = self.gradients + self.activations + self.logits
        return self.weights + self.optimizer + max(scoring, self.caches)


@dataclass(frozen=True)
class Plan:
    """What is chosen for a run, and what it takes.

    Attributes:
        offload: whether the optimiser's tensors are in host memory.
        recompute: whether layers are computed again in the backward pass.
        activations: MiB that a part may keep (0: no bound).
        rows, anchors: of a part.
        device: what is held where the passes run (on a CPU: in its memory).
        host: what is held beside it in host memory.
        flops: operations of a step, by phase.
    """

    offload: bool
    recompute: bool
    activations: int
    rows: int
    anchors: int
    device: Memory
    host: Memory
    flops: dict[str, float]

    def __str__(self) -> str:
        offloaded = f", optimiser in {self.host.total / GIB:.1f} of the host's" * self.offload
        recomputed = ", layers recomputed" * self.recompute
        bound = f"{self.activations:,} MiB" if self.activations else "all"
        return (
            f"about {self.device.total / GIB:.1f} GiB{offloaded}{recomputed}, "
            f"activations {bound} at a time"
        )


class Sizes(NamedTuple):
    """Numbers of a model: in the matrices of its layers, in all, and in the largest tensor."""

    matrices: int
    all: int
    largest: int

    @staticmethod
    def of(config: Config, shape: ModelConfig) -> Sizes:
        """Those of the module that a run trains; nothing is allocated."""
        with torch.device("meta"):
            quiet = QuietStar(Mistral(shape), config.thinking)
        sizes = {name: p.numel() for name, p in quiet.named_parameters()}
        matrices = (p.numel() for p in quiet.model.layers.parameters() if p.ndim >= 2)
        return Sizes(sum(matrices), sum(sizes.values()), max(sizes.values()))


def activation_bytes(
    config: Config,
    shape: ModelConfig,
    width: int,
    recompute: bool,
    rows: int,
    anchors: int,
    compiled: bool = False,
) -> int:
    """What scoring some rows with the thoughts of some anchors keeps for the backward pass.

    Args:
        config: rows and thoughts.
        shape: of the model.
        width: bytes of a number of the arithmetic.
        recompute: whether of each layer only the input is kept.
        rows, anchors: of the part.
        compiled: whether layers are.
    """
    thought, D, T = config.thinking, shape.dim, config.run.seq
    n, m = thought.thoughts, thought.ahead
    branches = anchors * thought.samples if config.run.thinks else 0
    slots = T + branches * (n + m + 1)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # numbers of a slot and layer: inputs of the layer and of its products, queries, keys and
    # values, what they attended to, the inner width
    layer = 3 * D + 3 * queries + 2 * keys + 3 * shape.hidden_dim
    if not compiled:  # the compiler computes the middle of a layer again
        layer += D + queries + shape.heads * (n + m + 1)
    if not compiled and width < 4:  # float32 norms, scores over text and thought
        layer += 6 * D + shape.hidden_dim + shape.heads * T
    layers = shape.layers * D + layer if recompute else shape.layers * layer
    # float32 inputs of the mixing head and of the losses
    ends = T * D + branches * (5 * m + n) * D
    return rows * (slots * (layers + 2 * D) * width + ends * 4)


def split(
    config: Config,
    shape: ModelConfig,
    width: int,
    recompute: bool,
    mebibytes: int,
    rows: int,
    compiled: bool = False,
) -> tuple[int, int]:
    """Rows and anchors of a part: as many of `rows` as fit `mebibytes` (0: all), then anchors.

    One row with one anchor is the least, whether it fits or not.
    """
    A = config.thinking.anchor_count(config.run.seq) if config.run.thinks else 0
    bound = mebibytes * MIB

    def fits(rows: int, anchors: int) -> bool:
        kept = activation_bytes(config, shape, width, recompute, rows, anchors, compiled)
        return kept <= bound

    if not bound or fits(rows, A):
        return rows, A
    for count in range(2, rows + 1):
        if fits(some := math.ceil(rows / count), A):
            return _even(rows, some), A
    if config.thinking.base_weight == 1 and config.thinking.beta == 0:
        return 1, A  # parts after the first would have nothing to train
    for count in range(2, A + 1):
        if fits(1, some := math.ceil(A / count)):
            return 1, _even(A, some)
    return 1, min(1, A)


def _even(total: int, most: int) -> int:
    """The largest size up to `most` that divides a total: each further size is compiled anew.

    If that is less than half of `most`, as many sizes as it takes.
    """
    sizes = (size for size in range(most, most // 2, -1) if total % size == 0)
    return next(sizes, most)


def cache_bytes(config: Config, shape: ModelConfig, width: int, rows: int) -> int:
    """Keys and values of some rows and their thoughts, in every layer, while they are sampled."""
    thought, T = config.thinking, config.run.seq
    if not config.sampled:
        return 0
    slots = T + thought.anchor_count(T) * thought.samples * thought.thoughts
    return 2 * shape.layers * rows * slots * shape.kv_heads * shape.head_dim * width


def logit_bytes(config: Config, shape: ModelConfig, placement: Placement, rows: int) -> int:
    """Pieces of the logits in float32 while some rows are scored, and gradients of the head."""
    thought, T, V = config.thinking, config.run.seq, shape.vocab_size
    branches = thought.anchor_count(T) * thought.samples if config.run.thinks else 0
    most = rows * max(T, branches * max(thought.thoughts, thought.ahead))
    piece = min(most, LOGITS_AT_ONCE // V // (16 if placement.device.type == "cpu" else 1))
    head = V * shape.dim
    # on CUDA a float32 product is one of halves in bfloat16, of which copies are made
    halves = 10 * head if placement.device.type == "cuda" and placement.dtype.itemsize < 4 else 0
    return 2 * 4 * piece * V + 2 * 4 * head + halves


def draw_bytes(config: Config, shape: ModelConfig, rows: int) -> int:
    """Logits of a token of every thought, and what is made of them to draw it."""
    branches = config.thinking.anchor_count(config.run.seq) * config.thinking.samples
    numbers = min(LOGITS_AT_ONCE, rows * branches * shape.vocab_size)
    return 4 * 4 * numbers if config.sampled else 0


def plan(
    config: Config,
    shape: ModelConfig,
    placement: Placement,
    device_bytes: int | None,
    ranks: int = 1,
) -> Plan:
    """What `choose` chooses, whether it fits or not; arguments as of `choose`."""
    run, cpu = config.run, placement.device.type == "cpu"
    sizes, width, compiled = Sizes.of(config, shape), placement.dtype.itemsize, placement.compile
    mine = max(1, run.batch // ranks)
    rows = min(run.micro_batch or mine, mine)
    # of several processes each keeps its share in float32, and all of the layers while it thinks
    narrow = sizes.matrices if placement.dtype == torch.bfloat16 and ranks == 1 else 0
    weights, gradients = (4 * sizes.all - 2 * narrow) // ranks, 4 * sizes.all // ranks
    optimizer = (8 * sizes.all + 4 * narrow) // ranks
    logits = logit_bytes(config, shape, placement, rows)
    caches = cache_bytes(config, shape, width, rows) + draw_bytes(config, shape, rows)
    caches += width * sizes.matrices if ranks > 1 else 0

    def least(recompute: bool) -> int:
        thought = config.thinking
        branch = thought.samples * (thought.thoughts + thought.ahead + 1)
        anchors = min(thought.anchor_count(run.seq), math.ceil(SMALL_PART / branch))
        return activation_bytes(config, shape, width, recompute, 1, anchors, compiled)

    offload, recompute, bound = bool(run.offload), bool(run.recompute), run.activations
    if cpu or device_bytes is None:
        bound = bound if bound is not None else ACTIVATIONS if cpu else 0
    else:
        room = int(device_bytes * (1 - RESERVE)) - CONTEXT - weights
        if run.offload is None and ranks == 1:
            scoring = gradients + logits + least(run.recompute is not False)
            offload = max(scoring, caches) + optimizer > room
        room -= gradients + logits + (0 if offload else optimizer)
        if run.recompute is None:
            recompute = least(False) > room
        if bound is None:
            bound = math.ceil(max(room, least(recompute)) / MIB)
    rows, anchors = split(config, shape, width, recompute, bound, rows, compiled)
    kept = activation_bytes(config, shape, width, recompute, rows, anchors, compiled)
    # on the host masters of all parameters, and two gradients and two values on their way
    held, host = (0, 12 * sizes.all + 4 * 4 * sizes.largest) if offload else (optimizer, 0)
    return Plan(
        offload,
        recompute,
        bound,
        rows,
        anchors,
        device=Memory(weights, gradients, held, kept, caches, logits),
        host=Memory(optimizer=host),
        flops=operations(config, shape, recompute),
    )


def complaints(plan: Plan, device_bytes: int | None, host_bytes: int | None) -> list[str]:
    """What does not fit for certain, and what to do: empty where all does.

    Args:
        plan: of a run.
        device_bytes: of the device's memory; None: not known.
        host_bytes: of host memory that is available; None: not known.
    """
    found = []
    device, host = plan.device, plan.host.total
    if device_bytes is not None and device.total > device_bytes:
        fixed = device._replace(caches=0, activations=0).total
        if fixed > device_bytes and not plan.offload:
            todo = "drop --no-offload, or use more GPUs (torchrun)"
        elif fixed > device_bytes:
            todo = "use a larger GPU, or more of them (torchrun)"
        elif device.caches > device.gradients + device.activations:
            todo = "lower --micro-batch"
        else:
            todo = "lower --activations or --micro-batch, or pass --recompute"
        found.append(
            f"this takes {device.total / GIB:.1f} GiB on the device, which has "
            f"{device_bytes / GIB:.1f}: {todo}"
        )
    if host_bytes is not None and host > host_bytes:
        found.append(
            f"the optimiser's moments and master weights take {host / GIB:.1f} GiB of host "
            f"memory, {host_bytes / GIB:.1f} are available: use a machine with more, or more GPUs "
            "(torchrun)"
        )
    return found


def choose(
    config: Config,
    shape: ModelConfig,
    placement: Placement,
    device_bytes: int | None,
    host_bytes: int | None,
    ranks: int = 1,
) -> Plan:
    """Decide what is kept where: what the flags say, and what fits where they are silent.

    On CUDA the optimiser goes to host memory where it does not fit beside a small part's
    activations; layers are recomputed where a small part does not fit without; and the parts take
    what is left. On a CPU all of this is off.

    Args:
        config: of the run.
        shape: of its model.
        placement: where it computes, and in what.
        device_bytes: memory of the CUDA device; None: no bound is known.
        host_bytes: host memory that is available; None: not known.
        ranks: processes that share the parameters and the rows.

    Raises:
        ValueError: it cannot fit; with what it needs, what there is, and what to do. Or --offload
            is given to several processes.
    """
    if config.run.offload and ranks > 1:
        raise ValueError(
            f"--offload: expected one process, found {ranks}, which share the optimiser among them"
        )
    chosen = plan(config, shape, placement, device_bytes, ranks)
    if found := complaints(chosen, device_bytes, host_bytes):
        raise ValueError(found[0])
    return chosen


def settle(
    config: Config, shape: ModelConfig, placement: Placement, ranks: int = 1
) -> tuple[Config, Placement, Plan]:
    """What a run computes with on this machine: `choose` decides what its settings leave open.

    Raises:
        ValueError: it cannot fit.
    """
    chosen = choose(config, shape, placement, *available(placement.device), ranks)
    names = ("offload", "recompute", "activations")
    settings = config.changed(**{name: getattr(chosen, name) for name in names})
    return settings, placement.for_training(chosen.offload, ranks == 1), chosen


def available(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that are free on a CUDA device and in host memory; None where nobody says."""
    meminfo = Path("/proc/meminfo")
    free = None
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        free = next((int(n) * 1024 for name, n, *_ in lines if name == "MemAvailable:"), None)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None, free
