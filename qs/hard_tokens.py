"""Hard tokens: what thinking does by difficulty, where it is worth it, and examples of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from qs import report
from qs.answers import gold_above, marked, measure
from qs.opened import Opened, heldout, heldout_pairs
from qs.tables import Table
from qs.tasks import by_decile, frontier, most_helped, token_nlls
from qs.training import step_generator

EXAMPLES = 20  # of tokens that were helped most, and of those hurt most


def hard_tokens(opened: Opened) -> tuple[dict[str, Any], list[Table]]:
    """Measure held-out text; facts to keep and tables to show."""
    run, thought = opened.config.run, opened.config.thought
    found = token_nlls(opened.quiet, heldout_pairs(opened), step_generator(run.seed, 0))
    deciles = by_decile(found.nll_base, found.nll_mix, found.documents)
    spared = frontier(found, thought.thoughts)
    folder = heldout(opened).folder
    if (text := marked(folder, opened.tokenizer, run.seq, run.eval_rows)) is not None:
        rows = [slice(i, i + run.batch) for i in range(0, len(text.tokens), run.batch)]
        asked = measure(opened.quiet, text, rows, step_generator(run.seed, 0))
        spared = [dataclasses.replace(s, gold=gold_above(asked, s.above)) for s in spared]
    pairs = heldout_pairs(opened)
    best, worst = most_helped(opened.quiet, pairs, step_generator(run.seed, 0), EXAMPLES)
    named = {"deciles": deciles, "frontier": spared, "helped": best, "hurt": worst}
    facts = {name: [dataclasses.asdict(x) for x in lines] for name, lines in named.items()}
    facts |= {"data": str(folder), "tokens": len(found.nll_base), "seed": run.seed}
    facts["documents"] = len(set(found.documents.tolist()))
    about = (
        f"{folder}: {facts['tokens']:,} tokens of {facts['documents']:,} documents, rows of "
        f"{run.seq}; one thought of n {thought.thoughts} at temperature "
        f"{thought.sample_temperature} before each; seed {run.seed}"
    )
    return facts, report.text_tables(deciles, spared, best, worst, opened.tokenizer, about)
