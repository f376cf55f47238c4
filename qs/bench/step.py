"""A training step phase by phase, and the same work with every branch read on its own."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from qs.bench.measure import Measured, Stopwatch, measure
from qs.bench.work import Work, build
from qs.quietstar.attention import Dense
from qs.quietstar.sampler import step_generator
from qs.training.optimizer import make_optimizer
from qs.training.step import sum_over_ranks, think


def measure_step(work: Work) -> Iterator[tuple[str, Measured]]:
    """Stages: the text read alone, thinking alone (without gradient), the whole step.

    A step that does not fit in memory still leaves what thinking takes.
    """
    quiet, plan, config = build(work)
    device = quiet.start.device
    tokens = torch.randint(3, work.shape.vocab_size, (work.batch, work.seq)).to(device)
    documents = torch.zeros_like(tokens)

    @torch.no_grad()
    def read(watch: Stopwatch, number: int) -> None:
        quiet.base(tokens, documents)
        watch.lap("prefill")

    def think_alone(watch: Stopwatch, number: int) -> None:
        think(quiet, tokens, documents, config, step_generator(0, number))
        watch.lap("think")

    yield "prefill", measure(work, device, read)
    yield "think", measure(work, device, think_alone)

    optimizer = make_optimizer(quiet, config.optim, plan.offload, plan.eight_bits)

    def step(watch: Stopwatch, number: int) -> None:
        parts = think(quiet, tokens, documents, config, step_generator(0, number))
        watch.lap("think")
        counts = sum_over_ranks([part.counts for part in parts])
        for part in parts:  # what `Part.scored` does, in the stages of the algorithm
            thought = part.anchors, part.thoughts
            base, branch = quiet.score(part.tokens, part.documents, *thought)
            watch.lap("score")
            mixed = quiet.mix(part.anchors, base, quiet.after(branch, part.thoughts))
            judged = quiet.judge(part.targets, *thought, base, branch, mixed)
            loss = quiet.loss(part.of(quiet.means(judged, counts)))
            watch.lap("losses")
            loss.backward()
            watch.lap("backward")
        torch.nn.utils.clip_grad_norm_(quiet.parameters(), config.optim.clip)
        watch.lap("clip")
        optimizer.step()
        quiet.zero_grad()
        watch.lap("optimiser")

    result = measure(work, device, step)
    seconds = median(result.seconds["total"])
    thought = config.thought.anchor_count(work.seq) * work.samples * work.thoughts
    result.facts = {
        "planned_bytes": plan.device.total,
        "operations": sum(plan.flops.values()),
        "tokens_per_second": work.batch * work.seq / seconds,
        "thought_tokens_per_second": work.batch * thought / seconds,
    }
    if not quiet.model.compiled:  # neither counter sees into a compiled layer
        kept = 0

        def keep(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.nbytes
            return x

        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
        with FlopCounterMode(display=False) as counter, saved:
            step(Stopwatch(device), 0)
        result.facts |= {"counted_operations": counter.get_total_flops(), "kept_bytes": kept}
    yield "step", result


def measure_naive(work: Work) -> Measured:
    """The same step, every branch read on its own from the first token: what packing saves."""
    quiet, _, config = build(work)
    model = quiet.model
    tokens = torch.randint(3, work.shape.vocab_size, (1, work.seq))
    anchors = torch.arange(work.seq)[None]
    thoughts = torch.randint(3, work.shape.vocab_size, (1, work.seq, work.samples, work.thoughts))
    branches = quiet.embed_branches(tokens, anchors, thoughts)[0]  # (A, K, n + m + 1, D)

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

    def step(watch: Stopwatch, number: int) -> None:
        for t in range(work.seq):
            for k in range(work.samples):
                branch(t, k)
        watch.lap("naive step")

    return measure(work, quiet.start.device, step)
