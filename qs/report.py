"""What a person at a terminal reads: the progress bar's numbers and the closing table."""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qs.config import ThoughtConfig
from qs.decoding import Token
from qs.records import Shown
from qs.scores import Score, other_change
from qs.tasks import Decile, Helped, Spared
from qs.tokenizer import Tokenizer
from qs.view import page, terminal

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


MEASURES = {  # of `zeroshot.summary`: what is printed, and which columns it has
    "gold": "gold answer probability",
    "exact": "exact match of the decoded answer",
    "option": "likeliest option is right",
    "single": "one chain is right",
}
WAYS = {
    "base": "without thoughts",
    "greedy": "greedy thoughts",
    "sampled": "sampled thoughts",
    "mix": "greedy thoughts",
}


def exam_lines(task: str, summary: dict[str, Any]) -> list[str]:
    """A question set's rates with 95 % intervals, and differences paired by question."""
    lines = [f"{task}: {summary.get('scored', 0):,} of {summary['questions']:,} questions"]
    if summary["too_long"]:
        lines.append(f"  do not fit and are left out: {', '.join(summary['too_long'])}")
    for kind, title in MEASURES.items():
        for way, how in WAYS.items():
            found = summary.get(f"{kind}_{way}")
            if found is None:
                continue
            low, high = found.get("wilson") or spread(found["mean"], found["interval"])
            line = f"  {title:36}{how:18}{found['mean']:9.4f}  95 % {low:.4f} to {high:.4f}"
            if "change" in found:
                low, high = spread(found["change"]["mean"], found["change"]["interval"])
                line += f"   change {found['change']['mean']:+.4f} ({low:+.4f} to {high:+.4f})"
            lines.append(line)
    if "slots" in summary:
        ratio = summary["slots_everywhere"] / summary["slots"]
        lines.append(
            f"  {summary['slots']:,} branch slots; thinking at every position has "
            f"{summary['slots_everywhere']:,}, {ratio:.1f} times as many"
        )
    return [*lines, f"  {summary['seconds']:.0f} s"]


def against_lines(found: dict[str, Any]) -> list[str]:
    """Differences from another model on the same questions."""
    lines = [f"  minus {found['file']}, {found['questions']:,} questions, paired"]
    for kind, title in MEASURES.items():
        for way, how in WAYS.items():
            if (value := found.get(f"{kind}_{way}")) is not None:
                low, high = spread(value["mean"], value["interval"])
                lines.append(
                    f"  {title:36}{how:18}{value['mean']:+9.4f}  95 % {low:+.4f} to {high:+.4f}"
                )
    return lines


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


def text_lines(
    deciles: Sequence[Decile],
    spared: Sequence[Spared],
    best: Sequence[Helped],
    worst: Sequence[Helped],
    tokenizer: Tokenizer,
) -> list[str]:
    """Tokens by difficulty, thinking only where it may pay, tokens helped and hurt most."""
    lines = ["tokens by their NLL without thoughts, a tenth each (nats; perplexity in brackets)"]
    lines.append(f"{'NLL from':>10}{'to':>8}{'tokens':>9}{'without':>18}{'with':>18}{'gain':>10}")
    for d in deciles:
        both = (d.nll_base, d.nll_base - d.gain)
        cells = "".join(f"{x:9.4f} ({math.exp(x):6.2f})" for x in both)
        half = "" if d.interval is None else f" ± {d.interval:.4f}"
        lines.append(f"{d.low:10.3f}{d.high:8.3f}{d.tokens:9,}{cells}{d.gain:+10.4f}{half}")
    lines.append("\nthinking only where the entropy of the prediction without thoughts is above X")
    lines.append(
        f"{'X, nats':>10}{'share of tokens':>18}{'slots a token':>15}{'gain':>10}"
        f"{'kept':>8}{'gold':>8}"
    )
    for s in spared:
        kept = "-" if s.kept is None else f"{s.kept:.1%}"
        gold = "-" if s.gold is None else f"{s.gold:.3f}"
        lines.append(
            f"{s.above:10.3f}{s.share:18.1%}{s.slots:15.2f}{s.gain:+10.4f}{kept:>8}{gold:>8}"
        )

    def named(ids: Sequence[int]) -> str:
        special = (tokenizer.bos_id, tokenizer.eos_id)
        return repr("".join("…" if i < 0 else tokenizer.piece(i) for i in ids if i not in special))

    for title, found in (("helped", best), ("hurt", worst)):
        lines.append(f"\ntokens that their thoughts {title} most: gain, weight, token, thought")
        for x in found:
            lines.append(
                f"{x.gain:+8.3f} {x.weight:+6.2f}  {named(x.context)} -> {named([x.target])}"
                f"   thought {named(x.thought)}"
            )
    return lines


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
