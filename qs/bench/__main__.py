"""How fast, in how much memory, for how many operations: what is computed, phase by phase.

    python -m qs.bench step --size small --seq 128 --thoughts 15    one training step
    python -m qs.bench step --size tiny --against naive             every branch on its own
    python -m qs.bench step --sweep n                               exponents
    python -m qs.bench generate --size small                        a thought before each token
    python -m qs.bench step --size tiny --compare FILE --counts     against an earlier --json FILE

Random weights, random text, no files. Seconds are medians over --repeats, with the smallest and the
largest. Operations are counted by a formula (2 a parameter and slot forward, 6 with gradient) and
by PyTorch (what its counter knows); their rate is told as a share of that of a large matrix product
in the same run. --compare exits with 1 where a figure is worse than in the file by more than
--tolerance; with --counts only what is exact is compared.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from qs import cli, files
from qs.bench.work import Work, build
from qs.inference.decoding import Decoding
from qs.inference.generate import generate
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.attention import Dense
from qs.quietstar.load import choose_placement
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import Terms
from qs.tables import Table, terminal
from qs.training.step import make_optimizer, think
from qs.training.trainer import peak_memory
from qs.training.work import operations

SWEPT = {"n": "thoughts", "T": "seq", "K": "samples", "A": "anchor_share"}


class Stopwatch:
    """Seconds of each phase, over repeats; waits for the device at each reading."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.now: dict[str, float] = {}
        self.last = 0.0

    def start(self) -> None:
        """Begins the first phase."""
        self.lap("")

    def stop(self) -> None:
        """Ends a repeat."""
        for phase, seconds in self.now.items():
            self.seconds.setdefault(phase, []).append(seconds)
        self.now.clear()

    def lap(self, phase: str) -> None:
        """Ends a phase, or a piece of one that comes in pieces."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if phase:
            self.now[phase] = self.now.get(phase, 0.0) + now - self.last
        self.last = now


def measure_step(work: Work, quiet: QuietStar) -> dict[str, Any]:
    """Time the phases of training steps; count their operations and what they keep for backward."""
    config, device = work.config, quiet.start.device
    optimizer = make_optimizer(quiet, config.optim)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tokens = torch.randint(3, work.shape.vocab_size, (work.batch, work.seq)).to(device)
    documents = torch.zeros_like(tokens)
    watch = Stopwatch(device)

    def step(number: int, prefill: bool = True) -> None:
        watch.start()
        if prefill:  # once more, to tell it from sampling
            with torch.no_grad():
                quiet.base(tokens, documents)
            watch.lap("prefill")
        parts = think(quiet, tokens, documents, config, step_generator(0, number))
        watch.lap("sample")  # its own prefill is taken off below
        counts = Terms(*(sum(each) for each in zip(*(p.counts for p in parts), strict=True)))
        for part in parts:  # what `Part.scored` does, in the stages of the algorithm
            thought = part.anchors, part.thoughts
            base, branch = quiet.score(part.tokens, part.documents, *thought)
            watch.lap("score")
            mixed = quiet.mix(part.anchors, base, branch)
            judged = quiet.judge(part.targets, *thought, base, branch, mixed)
            loss = quiet.loss(part.of(quiet.means(judged, counts)))
            watch.lap("losses")
            loss.backward()
            watch.lap("backward")
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip)
        watch.lap("clip")
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimiser")
        watch.stop()

    kept = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.nbytes
        return x

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with FlopCounterMode(display=False) as counter, saved:
        step(0, prefill=False)
    watch.seconds.clear()
    system = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for number in range(work.repeats):
        step(number + 1)
    system = resource.getrusage(resource.RUSAGE_SELF).ru_stime - system
    seconds = watch.seconds
    seconds["sample"] = [s - p for s, p in zip(seconds["sample"], seconds["prefill"], strict=True)]
    total = [sum(lap) for lap in zip(*seconds.values(), strict=True)]
    thoughts = work.config.thought.anchor_count(work.seq) * work.samples * work.thoughts
    return {
        "seconds": {"step": total, **seconds},
        "operations": {
            "formula": sum(operations(work.config, work.shape).values()),
            "counted": counter.get_total_flops(),
        },
        "kept_bytes": kept,
        "peak_bytes": peak_memory(device),
        "system_seconds": system / work.repeats,
        "tokens_per_second": work.batch * work.seq / median(total),
        "thought_tokens_per_second": work.batch * thoughts / median(total),
    }


def measure_generate(work: Work, quiet: QuietStar) -> dict[str, Any]:
    """Time output tokens with a thought before each, after a prompt of T tokens."""
    prompts = torch.randint(3, work.shape.vocab_size, (work.batch, work.seq)).tolist()
    watch, decoding = Stopwatch(quiet.start.device), Decoding(max_tokens=16)
    tokens = 0
    for repeat in range(work.repeats + 1):
        watch.start()
        tokens = sum(len(result.tokens) for result in generate(quiet, prompts, decoding))
        watch.lap("tokens" if repeat else "")
        watch.stop()
    seconds = [s / tokens for s in watch.seconds["tokens"]]
    return {"seconds": {"output token": seconds}, "peak_bytes": peak_memory(quiet.start.device)}


def measure_naive(work: Work, quiet: QuietStar) -> dict[str, Any]:
    """The same step, every branch read on its own from the first token: what packing saves."""
    config, model = work.config, quiet.model
    tokens = torch.randint(3, work.shape.vocab_size, (1, work.seq))
    anchors = torch.arange(work.seq)[None]
    thoughts = torch.randint(3, work.shape.vocab_size, (1, work.seq, work.samples, work.thoughts))
    branches = quiet.embed_branches(tokens, anchors, thoughts)[0]  # (A, K, n + m + 1, D)
    watch = Stopwatch(quiet.start.device)

    def causal(x: Tensor) -> Tensor:
        size = x.shape[1]
        mask = torch.ones(1, size, size, dtype=torch.bool).tril()
        return model(x, torch.arange(size)[None], Dense(mask))

    def branch(t: int, k: int) -> None:
        text = model.embed(tokens[:, : t + 1])
        with torch.no_grad():  # sampled token by token, with nothing kept
            for length in range(1, config.thought.thoughts + 1):
                causal(torch.cat([text, branches[None, t, k, :length]], 1))
        out = causal(torch.cat([text, branches[None, t, k]], 1))
        model.logits(out[:, t + 1 :]).logsumexp(-1).sum().backward(retain_graph=True)

    for _ in range(work.repeats):
        watch.start()
        for t in range(work.seq):
            for k in range(work.samples):
                branch(t, k)
        watch.lap("step")
        watch.stop()
    return {"seconds": dict(watch.seconds), "peak_bytes": peak_memory(quiet.start.device)}


MODES: dict[str, Callable[[Work, QuietStar], dict[str, Any]]] = {
    "step": measure_step,
    "generate": measure_generate,
    "naive": measure_naive,
}


def matrix_rate(device: torch.device, repeats: int = 5) -> float:
    """Floating-point operations a second of a large matrix product, the best of some."""
    size = 2048 if device.type == "cpu" else 8192
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.randn(size, size, device=device, dtype=dtype)
    watch = Stopwatch(device)
    for repeat in range(repeats + 1):
        watch.start()
        a @ a
        watch.lap("product" if repeat else "")
        watch.stop()
    return 2 * size**3 / min(watch.seconds["product"])


def report(work: Work, mode: str, result: dict[str, Any]) -> Table:
    """A line for each phase, and what was counted below."""
    rows = [
        (phase, *(f"{1000 * f(values):.1f}" for f in (median, min, max)))
        for phase, values in result["seconds"].items()
    ]
    notes = [f"peak memory {result['peak_bytes'] / 2**20:,.0f} MiB"]
    if "operations" in result:
        formula, counted = result["operations"]["formula"], result["operations"]["counted"]
        rate = formula / median(result["seconds"]["step"])
        notes += [
            f"{formula / 1e9:.1f} GFLOP by the formula, {counted / 1e9:.1f} that PyTorch counts",
            f"{rate / 1e9:.1f} GFLOP/s, {rate / result['matrix_rate']:.0%} of a matrix product's "
            f"{result['matrix_rate'] / 1e9:.0f}",
            f"{result['tokens_per_second']:.0f} tokens and "
            f"{result['thought_tokens_per_second']:.0f} thought tokens a second",
            f"{result['kept_bytes'] / 2**20:,.0f} MiB kept for backward, "
            f"{result['system_seconds']:.2f} s a step in the kernel",
        ]
    title = f"{mode}: {work.size}, B {work.batch}, T {work.seq}, n {work.thoughts}, "
    title += f"m {work.ahead}, K {work.samples}, A {work.anchors} {work.anchor_share:g}"
    return Table(title, ("phase", "ms, median", "smallest", "largest"), rows, notes)


def sweep(work: Work, mode: str, letter: str) -> Table:
    """How seconds and operations grow with one size: exponents fitted over four doublings."""
    name, points = SWEPT[letter], []
    for factor in (0.25, 0.5, 1, 2):
        value = getattr(work, name) * factor
        value = value if name == "anchor_share" else max(2, round(value))
        if name == "anchor_share" and value > 1:
            continue
        changes = {name: value} | ({"anchors": "random"} if name == "anchor_share" else {})
        one = dataclasses.replace(work, **changes)
        seconds = median(next(iter(MODES[mode](one, build(one))["seconds"].values())))
        points.append((value, seconds, sum(operations(one.config, one.shape).values())))
        print(f"{letter} {value:g}: {seconds:.3f} s", file=sys.stderr)
    sizes, seconds, counts = np.log(np.array(points)).T
    rows = [(f"{value:g}", f"{time:.3f}", f"{count / 1e9:.2f}") for value, time, count in points]
    fitted = [np.polyfit(sizes, y, 1)[0] for y in (seconds, counts)]
    note = f"exponents: seconds {fitted[0]:.2f}, operations {fitted[1]:.2f}"
    return Table(f"{mode} by {letter}", (letter, "seconds", "GFLOP"), rows, [note])


def worse(now: dict[str, Any], before: dict[str, Any], tolerance: float, counts: bool) -> list[str]:
    """What is worse than before by more than a share, in words.

    Args:
        now, before: results of the same work.
        tolerance: allowed share.
        counts: only what is exact: operations and bytes kept.
    """
    pairs = {
        "operations": (now["operations"]["counted"], before["operations"]["counted"]),
        "bytes kept for backward": (now["kept_bytes"], before["kept_bytes"]),
    }
    if not counts:
        pairs["peak bytes"] = (now["peak_bytes"], before["peak_bytes"])
        step = (median(result["seconds"]["step"]) for result in (now, before))
        pairs["seconds a step"] = tuple(step)
    return [
        f"{name}: {new:,.6g}, before {old:,.6g} ({new / old - 1:+.1%})"
        for name, (new, old) in pairs.items()
        if new > old * (1 + tolerance)
    ]


def bench(argv: list[str]) -> int:
    """Measure, print, write, compare. Returns the exit status: 1 where something is worse."""
    parser = cli.Parser("-m qs.bench", __doc__)
    parser.add_argument("mode", choices=("step", "generate"), help="what is measured")
    cli.add_settings(parser, Work)
    parser.add_argument("--against", choices=("naive",), help="also every branch on its own")
    parser.add_argument("--sweep", choices=SWEPT, help="measure at four sizes, fit exponents")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json")
    parser.add_argument("--tolerance", type=float, default=0.1, help="share it may be worse [0.1]")
    parser.add_argument("--counts", action="store_true", help="compare what is exact alone")
    args = parser.parse_args(argv)
    work = Work(**cli.chosen(args, Work))
    torch.manual_seed(0)
    if args.sweep and args.mode != "step":
        raise ValueError("--sweep: expected the mode step, whose operations are counted")
    if args.sweep:
        print(terminal(sweep(work, args.mode, args.sweep)))
        return 0
    quiet = build(work)
    if args.compare and args.mode != "step":
        raise ValueError("--compare: expected the mode step, whose counts are compared")
    plain = work.batch == 1 and work.anchors == "all" and quiet.start.device.type == "cpu"
    if args.against and not (args.mode == "step" and plain):
        raise ValueError("--against naive: expected a step of --batch 1 and all anchors on a CPU")
    result = MODES[args.mode](work, quiet)
    result["matrix_rate"] = matrix_rate(quiet.start.device)
    print(terminal(report(work, args.mode, result)))
    if args.against:
        naive = measure_naive(work, quiet)
        times = median(naive["seconds"]["step"]) / median(result["seconds"]["step"])
        print("\n" + terminal(report(work, "naive", naive)) + f"\n  {times:.1f} times as long")
    if args.json:
        here = files.environment(str(choose_placement(work.config.run)))
        facts = {"work": dataclasses.asdict(work), "mode": args.mode, "environment": here}
        files.write_json(args.json, facts | result)
        print(f"written to {args.json}")
    if args.compare:
        before = files.read_object(args.compare)
        if before.get("mode") != args.mode:
            raise ValueError(f"{args.compare}: expected figures of a step that --json wrote")
        if before["work"] | {"repeats": 0} != dataclasses.asdict(work) | {"repeats": 0}:
            raise ValueError(f"{args.compare}: expected figures of the same work, found others")
        complaints = worse(result, before, args.tolerance, args.counts)
        print("\n".join(complaints) or f"nothing is worse than in {args.compare}")
        return int(bool(complaints))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line: `bench`."""
    return cli.main(bench, argv)


if __name__ == "__main__":
    sys.exit(main())
