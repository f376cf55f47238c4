"""How a thing is measured: laps, repeats after a first time, memory, time in the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from qs.bench.work import Work
from qs.training.trainer import peak_memory


class Stopwatch:
    """Laps of one repeat, from the moment it is made.

    On CUDA its marks are events on the stream, so that nothing waits for the device between phases.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks = [("", self._mark())]

    def _mark(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, phase: str) -> None:
        """Ends a phase, or a piece of one that comes in pieces."""
        self.marks.append((phase, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Of each phase; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        phases: dict[str, float] = {}
        for (_, begin), (phase, end) in pairwise(self.marks):
            took = begin.elapsed_time(end) / 1000 if self.cuda else end - begin
            phases[phase] = phases.get(phase, 0.0) + took
        return phases


@dataclass
class Measured:
    """What was measured of one stage.

    Attributes:
        seconds: of each phase, a number for each repeat; "total" is all of them.
        first: seconds of the first time, which does not count: compilation is in it.
        system: seconds a repeat that this process and its children spent in the kernel.
        peak_bytes: the most that CUDA held during the repeats, or that this process ever had
            resident: stages that come later may owe it to earlier ones.
        facts: what was counted, and rates.
    """

    seconds: dict[str, list[float]]
    first: float
    system: float
    peak_bytes: int
    facts: dict[str, float] = field(default_factory=dict)


def measure(work: Work, device: torch.device, once: Callable[[Stopwatch, int], None]) -> Measured:
    """Measure `once(watch, number)`, which marks its laps: a first time, then --repeats.

    Repeats end early, after one or more, once they took --seconds together.
    """
    first = _timed(device, once, 0)["total"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, system = time.perf_counter(), _system_seconds()
    laps: list[dict[str, float]] = []
    while len(laps) < work.repeats and (not laps or time.perf_counter() - began < work.seconds):
        laps.append(_timed(device, once, len(laps) + 1))
    return Measured(
        seconds={phase: [lap[phase] for lap in laps] for phase in laps[0]},
        first=first,
        system=(_system_seconds() - system) / len(laps),
        peak_bytes=peak_memory(device),
    )


def _timed(
    device: torch.device, once: Callable[[Stopwatch, int], None], number: int
) -> dict[str, float]:
    watch = Stopwatch(device)
    once(watch, number)
    phases = watch.seconds()
    return {"total": sum(phases.values())} | phases


def _system_seconds() -> float:
    import resource  # not on Windows, which trains all the same

    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_stime for each in who)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of ten."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(10):
        watch = Stopwatch(device)
        torch.mm(a, a, out=out)
        watch.lap("product")
        best = min(best, watch.seconds()["product"])
    return 2 * size**3 / best
