"""What is chosen so that a run fits into memory: `choose`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from qs.config import Config
from qs.model.config import ModelConfig
from qs.quietstar.load import Placement
from qs.training.lowbit import BLOCK
from qs.training.memory import (
    GIB,
    MIB,
    Memory,
    PartMemory,
    Sizes,
    cache_bytes,
    draw_bytes,
    logit_bytes,
)
from qs.training.work import operations

SMALL_PART = 2048  # slots: smaller matrix products do not keep a GPU busy
LOW_BIT_BYTES = 2 * (1 + 4 / BLOCK)  # of the moments of a parameter
RESERVE, CONTEXT = 0.06, GIB  # of a device: fragments, and what CUDA and compiled code take


@dataclass(frozen=True)
class Plan:
    """What is chosen for a run, and what it takes.

    Attributes:
        offload: whether the optimiser's tensors are in host memory.
        moments: "float32" or "8bit".
        recompute: whether layers are computed again in the backward pass.
        activations: MiB that a part may keep (0: no bound).
        rows, anchors: of a part.
        device: what is held where the passes run (on a CPU: in its memory).
        host: what is held beside it in host memory.
        flops: operations of a step, by phase.
    """

    offload: bool
    moments: str
    recompute: bool
    activations: int
    rows: int
    anchors: int
    device: Memory
    host: Memory
    flops: dict[str, float]

    @property
    def eight_bits(self) -> bool:
        """Whether moments have them."""
        return self.moments == "8bit"

    def __str__(self) -> str:
        offloaded = f", optimiser in {self.host.total / GIB:.1f} of the host's" * self.offload
        eight = ", 8-bit moments and bfloat16 gradients" * self.eight_bits
        recomputed = ", layers recomputed" * self.recompute
        bound = f"{self.activations:,} MiB" if self.activations else "all"
        return (
            f"about {self.device.total / GIB:.1f} GiB{offloaded}{eight}{recomputed}, "
            f"activations {bound} at a time"
        )


def plan(
    config: Config,
    shape: ModelConfig,
    placement: Placement,
    device_bytes: int | None,
    host_bytes: int | None = None,
    ranks: int = 1,
) -> Plan:
    """What `choose` chooses, whether it fits or not; arguments as of `choose`."""
    usual = _plan(config, shape, placement, device_bytes, ranks)
    run = config.run
    if run.moments or run.offload or not usual.offload or host_bytes is None:
        return usual
    if usual.host.total <= host_bytes:
        return usual
    config = config.changed(moments="8bit", offload=False)
    small = _plan(config, shape, placement, device_bytes, ranks)
    return usual if complaints(small, device_bytes, host_bytes) else small


def _plan(
    config: Config, shape: ModelConfig, placement: Placement, device_bytes: int | None, ranks: int
) -> Plan:
    """The plan whose moments are of the kind that is asked for: float32 where none is."""
    run, cpu = config.run, placement.device.type == "cpu"
    sizes, width, compiled = Sizes.of(config, shape), placement.dtype.itemsize, placement.compile
    mine = max(1, run.batch // ranks)
    rows = min(run.micro_batch or mine, mine)
    # of several processes each keeps its share in float32, and all of the layers while it thinks
    narrow = sizes.matrices if placement.dtype == torch.bfloat16 and ranks == 1 else 0
    weights, gradients = (4 * sizes.all - 2 * narrow) // ranks, 4 * sizes.all // ranks
    # a moving average or a teacher, and the weights while it is in their place
    held = config.thinking.reference == "average" or run.distil > 0
    average = (8 * sizes.all - 2 * narrow) * held
    optimizer = (8 * sizes.all + 4 * narrow) // ranks + average
    moments = run.moments or "float32"
    if moments == "8bit":
        gradients -= 2 * narrow
        optimizer = int(LOW_BIT_BYTES * sizes.all) + 2 * narrow + average
    anchors = config.thinking.anchor_count(run.seq) if run.thinks else 0
    logits = logit_bytes(config, shape, placement, rows, anchors)  # at most
    caches = cache_bytes(config, shape, width, rows) + draw_bytes(config, shape, rows)
    caches += width * sizes.matrices if ranks > 1 else 0

    def memory_of(recompute: bool) -> PartMemory:
        return PartMemory(config, shape, width, recompute, compiled)

    offload, recompute, bound = bool(run.offload), bool(run.recompute), run.activations
    if cpu or device_bytes is None:
        if bound is None:
            bound = memory_of(recompute).cpu_bound() if cpu else 0
    else:
        room = int(device_bytes * (1 - RESERVE)) - CONTEXT - weights
        if run.offload is None and ranks == 1 and moments == "float32":
            scoring = gradients + logits + memory_of(run.recompute is not False).least(SMALL_PART)
            offload = max(scoring, caches) + optimizer > room
        room -= gradients + logits + (0 if offload else optimizer)
        if run.recompute is None:
            recompute = memory_of(False).least(SMALL_PART) > room
        if bound is None:
            bound = math.ceil(max(room, memory_of(recompute).least(SMALL_PART)) / MIB)
    part = memory_of(recompute)
    rows, anchors = part.split(bound, rows)
    logits = logit_bytes(config, shape, placement, rows, anchors)
    if recompute:
        logits = max(0, logits - part.layer(rows, anchors))
    parts = math.ceil(config.thinking.anchor_count(run.seq) / anchors) if anchors else 1
    # on the host masters of all parameters, and two gradients and two values on their way
    held, host = (0, 12 * sizes.all + 4 * 4 * sizes.largest) if offload else (optimizer, 0)
    return Plan(
        offload,
        moments,
        recompute,
        bound,
        rows,
        anchors,
        device=Memory(weights, gradients, held, part.kept(rows, anchors), caches, logits),
        host=Memory(optimizer=host),
        flops=operations(config, shape, recompute, parts),
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
        if fixed > device_bytes and not plan.offload and not plan.eight_bits:
            todo = "drop --no-offload, pass --moments 8bit, or use more GPUs (torchrun)"
        elif device.caches > device.gradients + device.activations + device.logits:
            todo = "lower --micro-batch"
        elif fixed <= device_bytes and not plan.recompute:
            todo = "pass --recompute or lower --activations"
        else:
            todo = "use a larger GPU, or more of them (torchrun)"
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
    if config.run.moments == "8bit" and ranks > 1:
        raise ValueError(
            f"--moments 8bit: expected one process, found {ranks}, which share float32 ones"
        )
    if config.run.moments == "8bit" and config.run.offload:
        raise ValueError("--offload: expected --moments float32, found 8bit: drop one of the two")
    if config.run.offload and ranks > 1:
        raise ValueError(
            f"--offload: expected one process, found {ranks}, which share the optimiser among them"
        )
    chosen = plan(config, shape, placement, device_bytes, host_bytes, ranks)
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
    names = ("offload", "moments", "recompute", "activations")
    settings = config.changed(**{name: getattr(chosen, name) for name in names})
    placement = placement.for_training(chosen.offload, ranks == 1, chosen.eight_bits)
    return settings, placement, chosen


def available(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that are free on a CUDA device and in host memory; None where nobody says."""
    meminfo = Path("/proc/meminfo")
    free = None
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        free = next((int(n) * 1024 for name, n, *_ in lines if name == "MemAvailable:"), None)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None, free
