"""Thoughts that end themselves, in the bundled world: the tables of docs/results/self-ended.md.

python docs/results/run_self_ended.py lengths RUN...     one set of weights, many lengths
python docs/results/run_self_ended.py curve RUN RUN...   gain against thought tokens; first: no cost
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qs import files
from qs.evaluation.heldout import (
    HeldoutScore,
    heldout_data,
    measure_heldout,
    other_change,
    summarise,
)
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.tokens import TextRows, TokenTable, measure_tokens
from qs.quietstar.load import Opened, open_model
from qs.tables import Table, terminal

ROWS, LENGTHS = 192, range(5, 15)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # of thought tokens


def opened_with(run: str, n: int) -> tuple[Opened, TextRows]:
    """A run whose thoughts have n tokens at most, and its held-out text."""
    opened = open_model(run, reads=True, thoughts=n, eval_rows=ROWS)
    settings, tokenizer = opened.config.run, opened.tokenizer
    data = heldout_data(settings, tokenizer)
    return opened, heldout_text(data, tokenizer, settings.seq, settings.eval_rows)


def untrained(opened: Opened, text: TextRows) -> HeldoutScore:
    """The score of what a run began with, without thoughts."""
    run = opened.config.run
    start = open_model(run.weights, True, data=run.data, seq=run.seq, eval_rows=ROWS)
    plain = start.config.changed(objective="plain")
    return summarise(text, measure_heldout(start.quiet, text, plain), plain)


def told(opened: Opened, text: TextRows, thoughts: Tensor, before: HeldoutScore) -> tuple[str, ...]:
    """One row of the table of lengths, of (R, T, n) thoughts."""
    places = iter(thoughts.split(opened.config.run.batch))

    def those(quiet, documents, drawn, generator) -> Tensor:
        return next(places)[:, :, None]

    quiet, config = opened.quiet, opened.config
    with quiet.with_settings(thoughts=0):  # none is sampled again
        found = measure_heldout(quiet, text, config, change=those)
    score = summarise(text, found, config)
    change = other_change(before, score)
    answers = score.answers[-1]
    numbers = (answers.gold_mix, answers.useful, found.answers.length.mean())
    other = found.other.length.sum() / found.other.tokens.sum()
    return (*(f"{x:.3f}" for x in numbers), f"{other:.2f}", f"{change.mean:+.4f}")


def lengths(runs: list[str]) -> None:
    """Thoughts of 14 tokens at most, drawn once; at a limit of n they are cut, as if drawn so."""
    for run in runs:
        opened, text = opened_with(run, max(LENGTHS))
        thoughts = measure_tokens(opened.quiet, text, opened.config.run).thoughts
        before = untrained(opened, text)
        rows = [(str(n), *told(opened, text, thoughts[..., :n], before)) for n in LENGTHS]
        heads = ("n", "gold", "useful", "tokens at answers", "elsewhere", "other NLL, change")
        print(terminal(Table(f"{run}: {len(text.questions)} questions", heads, rows)), flush=True)


def columns(run: str) -> tuple[TokenTable, np.ndarray, np.ndarray, np.ndarray]:
    """Every token of a run's held-out text: gain, thought tokens, and whether it is an answer."""
    opened, text = opened_with(run, files.read_config(Path(run)).thought.thoughts)
    table = measure_tokens(opened.quiet, text, opened.config.run, entropies=True)
    answer = ~text.other(torch.ones_like(table.scored))
    gain = (table.nll_base - table.nll_mix)[table.scored].double().numpy()
    return table, gain, table.length[table.scored].numpy(), answer[table.scored].numpy()


def curve(runs: list[str]) -> None:
    """Gain kept, by share of the thought tokens of the first run, thinking everywhere."""
    table, gain, length, answer = columns(runs[0])
    spent, whole = length.sum(), gain.sum()
    orders = {
        "entropy": -table.entropy[table.scored].numpy(),
        "answers first, then entropy": -table.entropy[table.scored].numpy() - 100 * answer,
        "gain a token, in hindsight": -gain / np.maximum(length, 1),
    }
    rows = []
    for name, key in orders.items():
        order = key.argsort(kind="stable")
        tokens, kept = length[order].cumsum(), gain[order].cumsum()
        at = [np.searchsorted(tokens, share * spent, side="right") - 1 for share in SHARES]
        rows.append((name, *(f"{kept[i] / whole:.3f}" if i >= 0 else "0" for i in at)))
    heads = ("who thinks", *(f"{share:.0%}" for share in SHARES))
    means = f"{whole / len(gain):.4f} nats and {spent / len(gain):.2f} thought tokens a token"
    print(terminal(Table(f"{runs[0]}: {means}", heads, rows)))
    rows = []
    for run in runs:
        _, mine, used, answer = columns(run)
        cost = files.read_config(Path(run)).thought.thought_cost
        shares = (used.sum() / spent, mine.sum() / whole)
        means = (used[answer].mean(), used[~answer].mean(), (used == 0).mean(), mine.mean())
        rows.append((run, f"{cost:g}", *(f"{x:.1%}" for x in shares), *(f"{x:.3f}" for x in means)))
    heads = (
        "run",
        "cost",
        "thought tokens",
        "gain kept",
        "at answers",
        "elsewhere",
        "empty",
        "gain",
    )
    print(terminal(Table("ends that are learned", heads, rows)))


if __name__ == "__main__":
    {"lengths": lengths, "curve": curve}[sys.argv[1]](sys.argv[2:])
