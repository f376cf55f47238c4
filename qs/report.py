"""What a person at a terminal reads: the progress bar's numbers and the closing table."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from qs.tasks import TextScore

OUT_OF_MEMORY = (
    "out of memory: lower --micro-batch (the batch stays the same), --seq, --thoughts or --samples,"
    " or pass --recompute"
)


def told(error: BaseException) -> str | None:
    """One line for what a person can mend; None for a bug of ours, which keeps its traceback."""
    allocator = "can't allocate memory"  # what PyTorch's CPU allocator says
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or allocator in str(error):
        return OUT_OF_MEMORY
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; go on from the last checkpoint, if there is one, with --resume"
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


def table(before: TextScore | None, after: TextScore | None) -> str:
    """The closing table."""
    if before is None or after is None:
        return "no held-out text was evaluated (--eval-rows 0, or an empty held-out split)"
    lines = [
        f"held-out text, {after.tokens:,} tokens, nats a token",
        f"{'':24}{'before':>12}{'after':>12}{'change':>12}",
    ]
    rows = [("without thoughts", before.nll_base, after.nll_base)]
    if before.nll_mix is not None and after.nll_mix is not None:
        rows.append(("with thoughts", before.nll_mix, after.nll_mix))
        rows.append(("gain by thinking", before.gain, after.gain))
        rows.append(("  95 % interval, +-", before.gain_interval, after.gain_interval))
        rows.append(("mixing weight", before.weight, after.weight))
    for name, first, last in rows:
        change = None if name.startswith("  ") or None in (first, last) else last - first
        change = "" if change is None else f"{change:+12.4f}"
        lines.append(f"{name:24}{cell(first)}{cell(last)}{change}")
    return "\n".join(lines)


def cell(value: float | None) -> str:
    """A number of a table; None is one that was not finite, or not defined."""
    return f"{'-':>12}" if value is None else f"{value:12.4f}"


def score_lines(score: TextScore) -> list[str]:
    """One score, a line each."""
    lines = [f"held-out text, {score.tokens:,} tokens, nats a token"]
    rows = [("without thoughts", score.nll_base)]
    if score.nll_mix is not None:
        rows.append(("with thoughts", score.nll_mix))
        rows.append(("gain by thinking", score.gain))
        rows.append(("  95 % interval, +-", score.gain_interval))
        rows.append(("mixing weight", score.weight))
    return lines + [f"{name:24}{cell(value)}" for name, value in rows]
