"""What a person at a terminal reads: the progress bar's numbers and the closing table."""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qs.config import ThoughtConfig
from qs.decoding import Token
from qs.records import Shown
from qs.scores import Score, other_change
from qs.tables import Table
from qs.tasks import Decile, Helped, Spared
from qs.tokenizer import Tokenizer
from qs.view import page, terminal
from qs.zeroshot import Exam

OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch (the batch stays the same), --seq, --thoughts or --samples,"
    " or pass --recompute"
)


INTERRUPTED = "interrupted; go on from the last checkpoint, if there is one, with --resume"


def told(error: BaseException, interrupted: str = INTERRUPTED) -> str | None:
    """One line for what a person can mend; None for a bug of ours, which keeps its traceback."""
    allocator = "can't allocate memory"  # what PyTorch's CPU allocator says
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or allocator in str(error):
        return OUT_OF_MEMORY
    if isinstance(error, KeyboardInterrupt):
        return interrupted
    return str(error) if isinstance(error, (ValueError, OSError)) else None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA held, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(record: dict[str, float]) -> str:
    """The progress bar's numbers: losses and reward in nats, w the mixing weight, g gradients."""
    shown = {
        "loss": "loss",
        "nll_base": "base",
        "nll_talk": "talk",
        "policy": "policy",
        "reward": "reward",
        "weight_mean": "w",
        "weight_std": "+-",
        "grad_norm": "g",
        "grad_norm_base": "g_base",
        "grad_norm_talk": "g_talk",
        "grad_norm_policy": "g_policy",
        "tokens_per_second": "tok/s",
        "thought_tokens_per_second": "thought tok/s",
    }
    parts = [f"{short} {record[key]:.3g}" for key, short in shown.items() if key in record]
    return " ".join([*parts, f"{record['memory_bytes'] / 2**30:.1f} GiB"])


def thought_lengths(config: ThoughtConfig) -> str:
    """n, m and K in words."""
    return f"n {config.thoughts}, m {config.ahead}, K {config.samples}"


def environment(device: str) -> dict[str, Any]:
    """First line of the log: what this run was made by and on."""
    try:
        done = subprocess.run(
            ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
        )
        commit = done.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def thoughts_shown(found: Shown, count: int, path: Path | None, about: dict[str, str]) -> str:
    """Print-ready text of a few passages with what was thought; all of them go to an HTML page.

    Args:
        found: passages and which of them are examples.
        count: examples to print.
        path: of the page; None: none is written.
        about: what the page says of model and text.
    """
    color = sys.stdout.isatty()
    parts = [terminal(found.passages[i], color) for i in found.examples[:count]]
    if path is not None:
        path.write_text(page("What the model thought", about, found.passages), encoding="utf-8")
        parts.append(f"what it thought, as a page: {path}")
    return "\n\n".join(parts)


def table(before: Score | None, after: Score | None) -> str:
    """The closing table: before, after with thoughts, and after with thoughts off."""
    if before is None or after is None:
        return "no held-out text was evaluated (--eval-rows 0, or an empty held-out split)"
    heads = ("before", "after", "thoughts off")
    if after.text.nll_mix is None:
        heads = ("before", "after")
    return "\n".join(_lines(heads, before, after))


def score_lines(score: Score) -> list[str]:
    """One score, a line each."""
    heads = ("with thoughts", "thoughts off") if score.text.nll_mix is not None else ("",)
    return _lines(heads, score)


def _lines(heads: tuple[str, ...], *scores: Score) -> list[str]:
    """A column for each score (with thoughts, if it has them), and one more for thoughts off."""
    last = scores[-1]

    def row(label: str, items: Sequence[Any], mix: str, off: str | None) -> str:
        """Values of `mix` (or of `off` where a model does not think), then `off` of the last."""
        found = [getattr(item, mix) for item in items]
        if found[-1] is None and off:
            found = [getattr(item, off) for item in items]
        elif off:
            found.append(getattr(items[-1], off))
        return f"{label:32}{''.join(cell(value) for value in found)}"

    def answers(title: str, mix: str, off: str | None) -> list[str]:
        rows = [
            row(f"  {items[-1].kind} ({items[-1].questions})", items, mix, off)
            for items in zip(*(score.answers for score in scores), strict=True)
        ]
        return [title, *rows]

    lines = [f"{'':32}{''.join(f'{head:>14}' for head in heads)}"]
    if last.answers:
        lines += answers("gold answer probability", "gold_mix", "gold_base")
        overall = [score.answers[-1] for score in scores]
        lines.append(row("    95 % +-", overall, "gold_mix_interval", "gold_base_interval"))
        lines += answers("NLL at the answer, nats", "nll_mix", "nll_base")
        if last.text.nll_mix is not None:
            if overall[-1].useful is not None:
                lines.append(row("thoughts that hold the steps", overall, "useful", None))
            lines.append(row("mixing weight at the answer", overall, "weight", None))
    texts = [("held-out text", [score.text for score in scores])]
    if last.other is not None:
        texts.insert(0, ("all other tokens", [score.other for score in scores]))
    for title, items in texts:
        lines.append(f"{title}, {items[-1].tokens:,} tokens")
        lines.append(row("  NLL, nats a token", items, "nll_mix", "nll_base"))
        if items[-1] is last.other and (change := other_change(scores[0], last)) and scores[1:]:
            for label, value in zip(("  change by training", "    95 % +-"), change, strict=True):
                lines.append(f"{label:32}{cell(None)}{cell(value)}")
        if last.text.nll_mix is not None:
            lines.append(row("  gain by thinking", items, "gain", None))
            lines.append(row("    95 % +-", items, "gain_interval", None))
            lines.append(row("  mixing weight", items, "weight", None))
    return lines


def cell(value: float | None) -> str:
    """A number of a table; None is one that was not finite, or not defined."""
    return f"{'-':>14}" if value is None else f"{value:14.4f}"


MEASURES = {  # of `zeroshot.summary`: what is shown, and which ways it has
    "gold": "gold answer probability",
    "exact": "exact match of the decoded answer",
    "option": "likeliest option is right",
    "single": "one chain is right",
}
WAYS = {
    "chance": "by chance",
    "base": "without thoughts",
    "greedy": "greedy thoughts",
    "sampled": "sampled thoughts",
    "mix": "greedy thoughts",
}


def measured(found: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every measure that was made, and in which way."""
    for kind, title in MEASURES.items():
        for way, how in WAYS.items():
            if (value := found.get(f"{kind}_{way}")) is not None:
                yield title, how, value


def exam_table(exam: Exam, summary: dict[str, Any]) -> Table:
    """A question set's rates with 95 % intervals, and differences paired by question."""
    scored, rows = summary.get("scored", 0), []
    for title, how, found in measured(summary):
        cells = [title, how, figure(found["mean"]), "", "", ""]
        if "wilson" in found:
            cells[3] = between(*found["wilson"])
        elif "interval" in found:
            cells[3] = between(*spread(found["mean"], found["interval"]))
        if "change" in found:
            change = found["change"]
            ends = spread(change["mean"], change["interval"])
            cells[4:] = [figure(change["mean"], "+"), between(*ends, "+")]
        rows.append(tuple(cells))
    asked = f"greedy and {exam.samples} sampled" if exam.thoughts else "none"
    if exam.votes:
        asked = f"majority of {exam.votes} chains, temperature {exam.temperature}, thoughts greedy"
    notes = [f"thoughts of n {exam.thoughts}: {asked}; seed {exam.seed}; {exam.batch} at a time"]
    notes.append(f"too long for the model and left out: {len(summary['too_long'])}")
    if summary["too_long"]:
        notes[-1] += f" ({', '.join(summary['too_long'])})"
    if "slots" in summary:
        notes.append(
            f"{summary['slots']:,} slots of greedy thoughts after {summary['tokens']:,} tokens; "
            f"thinking at every one has {summary['slots_everywhere']:,}, "
            f"{summary['slots_everywhere'] / summary['slots']:.1f} times as many"
        )
    if answered := summary["answered"]:
        took = summary["seconds"]
        notes.append(f"{took:.0f} s for {answered:,}, {1000 * took / answered:.0f} s for 1,000")
    heads = ("measure", "how", "mean", "95 % interval", "change", "95 % interval, paired")
    title = f"{exam.task}: {scored:,} of {summary['questions']:,} questions"
    return Table(title, heads if rows else (), rows, notes)


def against_table(found: dict[str, Any]) -> Table:
    """Differences from another model on the same questions."""
    rows = [
        (title, how, figure(x["mean"], "+"), between(*spread(x["mean"], x["interval"]), "+"))
        for title, how, x in measured(found)
    ]
    title = f"minus {found['file']}, {found['questions']:,} questions, paired"
    return Table(title, ("measure", "how", "difference", "95 % interval"), rows)


def figure(value: float, sign: str = "") -> str:
    """A number in four decimals, or in two digits where these would show nothing."""
    small = 0 < abs(value) < 5e-5
    return f"{value:{sign}.1e}" if small else f"{value:{sign}.4f}"


def between(low: float, high: float, sign: str = "") -> str:
    """Both ends of an interval."""
    return f"{figure(low, sign)} to {figure(high, sign)}"


def spread(mean: float, interval: float | None) -> tuple[float, float]:
    """Both ends of an interval; of one unit there is none."""
    half = interval or 0.0
    return mean - half, mean + half


def token_line(token: Token, tokenizer: Tokenizer) -> str:
    """One output token, and what was thought before it."""
    line = f"{tokenizer.piece(token.id)!r:16} entropy {token.entropy:5.2f} nats"
    if token.thought is None:
        return line
    thought = "".join("…" if i < 0 else tokenizer.piece(i) for i in token.thought)
    return f"{line}  weight {token.weight:+.2f}  thought {thought!r}"


def text_tables(
    deciles: Sequence[Decile],
    spared: Sequence[Spared],
    best: Sequence[Helped],
    worst: Sequence[Helped],
    tokenizer: Tokenizer,
    about: str,
) -> list[Table]:
    """Tokens by difficulty, thinking only where it may pay, tokens helped and hurt most.

    Args:
        deciles, spared, best, worst: see `qs/tasks.py`.
        tokenizer: of the tokens.
        about: text, counts and seed.
    """
    rows = []
    for d in deciles:
        pairs = (f"{x:.4f} ({math.exp(x):.2f})" for x in (d.nll_base, d.nll_base - d.gain))
        half = "-" if d.interval is None else f"{d.interval:.4f}"
        ends = f"{d.low:.3f}", f"{d.high:.3f}", f"{d.tokens:,}", f"{d.documents:,}"
        rows.append((*ends, *pairs, f"{d.gain:+.4f}", half))
    title = "tokens by their NLL without thoughts, a tenth each (nats; perplexity in brackets)"
    heads = ("NLL from", "to", "tokens", "documents", "without", "with", "gain", "95 % +-")
    notes = [about, "intervals: documents are the units"]
    tables = [Table(title, heads, rows, notes)]

    rows = []
    for s in spared:
        kept = "-" if s.kept is None else f"{s.kept:.1%}"
        gold = "-" if s.gold is None else f"{s.gold:.3f}"
        rows.append(
            (f"{s.above:.3f}", f"{s.share:.1%}", f"{s.slots:.2f}", f"{s.gain:+.4f}", kept, gold)
        )
    title = "thinking only where the entropy of the prediction without thoughts is above X"
    heads = ("X, nats", "share of tokens", "slots a token", "gain", "kept", "gold")
    tables.append(Table(title, heads, rows))

    def named(ids: Sequence[int]) -> str:
        special = (tokenizer.bos_id, tokenizer.eos_id)
        return repr("".join("…" if i < 0 else tokenizer.piece(i) for i in ids if i not in special))

    for title, found in (("helped", best), ("hurt", worst)):
        rows = [
            (f"{x.gain:+.3f}", f"{x.weight:+.2f}", *map(named, (x.context, [x.target], x.thought)))
            for x in found
        ]
        heads = ("gain", "weight", "text before", "token", "thought")
        tables.append(Table(f"tokens that their thoughts {title} most", heads, rows))
    return tables


def rounds_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Rounds of STaR: what was kept, and accuracy on held-out problems by group, in %."""
    groups = list(records[0]["accuracy"])
    heads = ("round", "problems", "kept", "hinted", "kept", "steps", "minutes", *groups)
    widths = [max(8, len(head)) for head in heads]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = [line(heads)]
    for record in records:
        seconds = sum(value for name, value in record.items() if name.endswith("_seconds"))
        names = ("round", "problems", "kept", "rationalized", "rationalized_kept", "steps")
        cells = [str(record.get(name, "-")) for name in names] + [f"{seconds / 60:.1f}"]
        cells += [f"{100 * record['accuracy'][group]:.1f}" for group in groups]
        lines.append(line(cells))
    return lines
