"""How fast, in how much memory, for how many operations: what is computed, phase by phase.

    python -m qs.bench step --size small --seq 128 --thoughts 15    one training step
    python -m qs.bench step --size 7b-4layers --json FILE           the same on CUDA, if there is
    python -m qs.bench step --size tiny --against naive             every branch on its own
    python -m qs.bench step --sweep n                               exponents
    python -m qs.bench generate --seq 64 --thoughts 7 --batch 8     a thought before each token
    python -m qs.bench evaluate --seq 64 --thoughts 7 --batch 8     a question set
    python -m qs.bench prepare                                      text to token shards
    python -m qs.bench step --size tiny --compare FILE --counts     against an earlier --json FILE

Random weights, random text. Each stage is measured --repeats times after a first time, which is
told apart: on CUDA it compiles. --json is written after each stage, so that nothing measured is
lost. Operations are counted by a formula (2 a parameter and slot forward, 6 with gradient) and,
where layers are not compiled, by PyTorch (what its counter knows); their rate is told as a share of
that of a large matrix product in the same run and dtype. Peak memory is what CUDA held in a stage,
or the largest resident size of this process so far. --compare exits with 1 where a figure is worse
than in the file by more than --tolerance; with --counts only what is exact is compared.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any

import numpy as np
import torch

from qs import cli, files
from qs.bench.data import measure_prepare
from qs.bench.inference import measure_evaluate, measure_generate
from qs.bench.measure import Measured, matrix_rate
from qs.bench.step import measure_naive, measure_step
from qs.bench.work import Work
from qs.environment import environment
from qs.quietstar.load import choose_placement
from qs.tables import Table, terminal
from qs.training.work import operations

MODES: dict[str, Callable[[Work], Iterator[tuple[str, Measured]]]] = {
    "step": measure_step,
    "generate": measure_generate,
    "evaluate": measure_evaluate,
    "prepare": measure_prepare,
}
SWEPT = {"n": "thoughts", "T": "seq", "K": "samples", "A": "anchor_share"}


def report(work: Work, mode: str, stages: dict[str, Measured], rate: float) -> Table:
    """A line for each phase of each stage, and what was counted below.

    Args:
        work: what was measured.
        mode: of MODES.
        stages: by name.
        rate: operations a second of a large matrix product.
    """
    rows, notes = [], []
    for name, stage in stages.items():
        whole = (f"{1000 * stage.first:.1f}", f"{stage.peak_bytes / 2**20:,.0f}")
        whole += (f"{1000 * stage.system:.1f}",)
        for phase, values in stage.seconds.items():
            if phase != "total" and len(stage.seconds) == 2:
                continue  # a stage of one phase is its total
            first = phase == "total"
            cells = (f"{1000 * f(values):.1f}" for f in (median, min, max))
            rows.append((name if first else f"  {phase}", *cells, *(whole if first else [""] * 3)))
        facts = dict(stage.facts)
        if operations := facts.pop("operations", None):
            speed = operations / median(stage.seconds["total"])
            counted = facts.pop("counted_operations", None)
            counts = f", {counted / 1e9:.1f} that PyTorch counts" if counted else ""
            notes += [
                f"{operations / 1e9:.1f} GFLOP by the formula{counts}",
                f"{speed / 1e9:.1f} GFLOP/s, {speed / rate:.0%} of a matrix product's "
                f"{rate / 1e9:.0f}",
            ]
        notes += [f"{name}: {fact.replace('_', ' ')} {value:,.6g}" for fact, value in facts.items()]
    title = f"{mode}: {work.size}, B {work.batch}, T {work.seq}, n {work.thoughts}, "
    title += f"m {work.ahead}, K {work.samples}, A {work.anchors} {work.anchor_share:g}"
    heads = ("ms", "median", "smallest", "largest", "first time", "peak MiB", "in the kernel")
    return Table(title, heads, rows, notes)


def sweep(work: Work, letter: str) -> Table:
    """How seconds and operations of a step grow with one size: exponents over four doublings."""
    name, points = SWEPT[letter], []
    value, shares = getattr(work, name), name == "anchor_share"
    first = value / 8 if shares else max(2, round(value / 4))
    for value in (first * 2**doubled for doubled in range(4)):
        changes = {name: value} | ({"anchors": "random"} if shares else {})
        one = dataclasses.replace(work, **changes)
        seconds = median(dict(measure_step(one))["step"].seconds["total"])
        points.append((value, seconds, sum(operations(one.config, one.shape).values())))
        print(f"{letter} {value:g}: {seconds:.3f} s", file=sys.stderr)
    sizes, seconds, counts = np.log(np.array(points)).T
    rows = [(f"{value:g}", f"{time:.3f}", f"{count / 1e9:.2f}") for value, time, count in points]
    fitted = [np.polyfit(sizes, y, 1)[0] for y in (seconds, counts)]
    note = f"exponents: seconds {fitted[0]:.2f}, operations {fitted[1]:.2f}"
    return Table(f"step by {letter}", (letter, "seconds", "GFLOP"), rows, [note])


def worse(now: dict[str, Any], before: dict[str, Any], tolerance: float, counts: bool) -> list[str]:
    """What is worse than before by more than a share, in words.

    Args:
        now, before: figures of the same step.
        tolerance: allowed share.
        counts: only what is exact: operations and bytes kept.
    """
    new, old = (figures["stages"]["step"] for figures in (now, before))
    pairs = {
        "operations": [x["facts"]["counted_operations"] for x in (new, old)],
        "bytes kept for backward": [x["facts"]["kept_bytes"] for x in (new, old)],
    }
    if not counts:
        pairs["peak bytes"] = [x["peak_bytes"] for x in (new, old)]
        pairs["seconds a step"] = [median(x["seconds"]["total"]) for x in (new, old)]
    return [
        f"{name}: {value:,.6g}, before {former:,.6g} ({value / former - 1:+.1%})"
        for name, (value, former) in pairs.items()
        if not value <= former * (1 + tolerance)  # NaN is never equal
    ]


def compared(figures: dict[str, Any], path: Path, tolerance: float, counts: bool) -> int:
    """Compare with an earlier file, print what is worse; 1 if anything is.

    Raises:
        ValueError: the file holds figures of something else.
    """
    before = files.read_object(path)
    same = {"repeats": 0, "seconds": 0}  # how long it was measured may differ
    try:
        alike = before["work"] | same == figures["work"] | same
        complaints = worse(figures, before, tolerance, counts) if alike else []
    except (KeyError, TypeError, ArithmeticError, StatisticsError):
        found = f"expected figures of a step that --json wrote, found {str(before)[:60]}"
        raise ValueError(f"{path}: {found}; measure it again") from None
    if not alike:
        raise ValueError(f"{path}: expected figures of the same work, found others")
    print("\n".join(complaints) or f"nothing is worse than in {path}")
    return int(bool(complaints))


def bench(argv: list[str]) -> int:
    """Measure, print, write, compare. Returns the exit status: 1 where something is worse."""
    parser = cli.Parser("python -m qs.bench", __doc__)
    parser.add_argument("mode", nargs="?", default="step", choices=MODES, help="[step]")
    cli.add_settings(parser, Work)
    parser.add_argument("--against", choices=("naive",), help="also every branch on its own")
    parser.add_argument("--sweep", choices=SWEPT, help="measure at four sizes, fit exponents")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json")
    share, what = cli.within(float, 0), "share it may be worse [0.1]"
    parser.add_argument("--tolerance", type=share, default=0.1, help=what)
    parser.add_argument("--counts", action="store_true", help="compare what is exact alone")
    args = parser.parse_args(argv)
    work = Work(**cli.chosen(args, Work))
    placement = choose_placement(work.config.run)
    for flag in ("sweep", "compare", "against"):
        if getattr(args, flag) and args.mode != "step":
            raise ValueError(f"--{flag}: expected the mode step, found {args.mode}")
    if args.compare and placement.compile:
        raise ValueError("--compare: expected --no-compile, since compiled layers are not counted")
    for flag in ("json", "compare", "against") if args.sweep else ():
        if getattr(args, flag):
            raise ValueError(f"--{flag} is of one step: leave out --sweep, or it")
    plain = work.batch == 1 and work.anchors == "all" and placement.device.type == "cpu"
    if args.against and not plain:
        raise ValueError("--against naive: expected a step of --batch 1 and all anchors on a CPU")
    torch.manual_seed(0)
    if args.sweep:
        print(terminal(sweep(work, args.sweep)))
        return 0
    print(placement, flush=True)
    figures: dict[str, Any] = {
        "work": dataclasses.asdict(work),
        "mode": args.mode,
        "environment": environment(str(placement)),
        "matrix_rate": matrix_rate(placement.device, placement.dtype),
        "stages": {},
    }
    stages: dict[str, Measured] = {}
    for name, stage in MODES[args.mode](work):
        stages[name], figures["stages"][name] = stage, dataclasses.asdict(stage)
        print(f"{name}: {median(stage.seconds['total']):.4f} s", file=sys.stderr, flush=True)
        if args.json:
            files.write_json(args.json, figures)
    if args.against:
        stages["naive step"] = measure_naive(work)
        naive, packed = (median(stages[x].seconds["total"]) for x in ("naive step", "step"))
        stages["naive step"].facts = {"times_as_long": naive / packed}
    print(terminal(report(work, args.mode, stages, figures["matrix_rate"])))
    if args.json:
        print(f"written to {args.json}")
    if args.compare:
        return compared(figures, args.compare, args.tolerance, args.counts)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `bench`."""
    return cli.main(bench, argv)


if __name__ == "__main__":
    sys.exit(main())
