"""Hard tokens: what thinking does by difficulty, where it is worth it, and examples of it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qs.evaluation.heldout import heldout_data, measure_heldout
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.tokens import TokenTable, measure_tokens, windows
from qs.inference.decoding import thought_text
from qs.model.tokenizer import Tokenizer
from qs.quietstar.load import Opened
from qs.tables import Table

EXAMPLE_TOKENS = 20  # of tokens that were helped most, and of those hurt most


@dataclass(frozen=True)
class Decile:
    """A tenth of the tokens, by their NLL without thoughts; in nats."""

    low: float  # smallest and
    high: float  # largest NLL in it
    tokens: int  # how many
    documents: int  # that they are in
    gain: float  # mean of nll_base - nll_mix
    interval: float | None  # half of its 95 % interval over documents; None for one document
    nll_base: float  # mean NLL without thoughts


@dataclass(frozen=True)
class FrontierPoint:
    """Thinking only where the prediction without thoughts is unsure; in nats."""

    above: float  # entropy from which on a token thinks
    share: float  # of the tokens that think
    slots: float  # computed for each token: itself and, where it thinks, start, thought and end
    gain: float  # mean of nll_base - nll_mix over all tokens; 0 where a token does not think
    kept: float | None  # share of the gain of thinking everywhere; None if that gained nothing
    gold: float | None = None  # gold answer probability; None where answers are not known


@dataclass(frozen=True)
class TokenGain:
    """One token and what thinking before it did."""

    gain: float  # nll_base - nll_mix, in nats
    weight: float  # mixing weight
    context: list[int]  # ids before the token (a few)
    target: int  # the token
    thought: list[int]  # ids


def token_table(opened: Opened) -> TokenTable:
    """Measure the held-out text of a model that thinks, row after row, with a progress bar.

    Raises:
        ValueError: another tokenizer prepared it, or it is empty.
    """
    run = opened.config.run
    text = windows(heldout_data(run, opened.tokenizer), run.seq, run.eval_rows)
    return measure_tokens(opened.quiet, text, run, entropies=True, label="held-out text")


def measure_hard_tokens(opened: Opened) -> tuple[dict[str, Any], list[Table]]:
    """Measure held-out text; facts to keep and tables to show.

    Raises:
        ValueError: as `token_table` does.
    """
    run, thought, tokenizer = opened.config.run, opened.config.thought, opened.tokenizer
    data, table = heldout_data(run, tokenizer), token_table(opened)
    deciles, points = by_decile(table), frontier(table)
    text = heldout_text(data, tokenizer, run.seq, run.eval_rows)
    if text.questions is not None:  # other rows than those of the table: documents are whole
        answers = measure_heldout(opened.quiet, text, opened.config).answers
        points = [replace(point, gold=answers.gold_above(point.above)) for point in points]
    best, worst = most_helped(table, EXAMPLE_TOKENS)
    named = {"deciles": deciles, "frontier": points, "helped": best, "hurt": worst}
    facts: dict[str, Any] = {name: [asdict(x) for x in lines] for name, lines in named.items()}
    facts |= {"data": str(data.folder), "tokens": int(table.scored.sum()), "seed": run.seed}
    facts |= {"checkpoint": opened.folder.name, "settings": opened.config.to_json()}
    facts["documents"] = len(table.documents[table.scored].unique())
    about = (
        f"{data.folder}: {facts['tokens']:,} tokens of {facts['documents']:,} documents, rows of "
        f"{run.seq}; one thought of n {thought.thoughts} at temperature "
        f"{thought.sample_temperature} before each; seed {run.seed}"
    )
    examples = [_gain_table("helped", best, tokenizer), _gain_table("hurt", worst, tokenizer)]
    return facts, [_decile_table(deciles, about), _frontier_table(points), *examples]


def _decile_table(deciles: Sequence[Decile], about: str) -> Table:
    rows = []
    for d in deciles:
        pairs = (f"{x:.4f} ({math.exp(x):.2f})" for x in (d.nll_base, d.nll_base - d.gain))
        half = "-" if d.interval is None else f"{d.interval:.4f}"
        ends = f"{d.low:.3f}", f"{d.high:.3f}", f"{d.tokens:,}", f"{d.documents:,}"
        rows.append((*ends, *pairs, f"{d.gain:+.4f}", half))
    title = "tokens by their NLL without thoughts, a tenth each (nats; perplexity in brackets)"
    heads = ("NLL from", "to", "tokens", "documents", "without", "with", "gain", "95 % +-")
    return Table(title, heads, rows, [about, "intervals: documents are the units"])


def _frontier_table(points: Sequence[FrontierPoint]) -> Table:
    rows = []
    for p in points:
        kept = "-" if p.kept is None else f"{p.kept:.1%}"
        gold = "-" if p.gold is None else f"{p.gold:.3f}"
        slots = f"{p.above:.3f}", f"{p.share:.1%}", f"{p.slots:.2f}"
        rows.append((*slots, f"{p.gain:+.4f}", kept, gold))
    title = "thinking only where the entropy of the prediction without thoughts is above X"
    heads = ("X, nats", "share of tokens", "slots a token", "gain", "kept", "gold")
    return Table(title, heads, rows)


def _gain_table(change: str, tokens: Sequence[TokenGain], tokenizer: Tokenizer) -> Table:
    rows = [
        (
            f"{x.gain:+.3f}",
            f"{x.weight:+.2f}",
            repr(tokenizer.decode(x.context)),
            repr(tokenizer.piece(x.target)),
            repr(thought_text(tokenizer, x.context, x.thought)),
        )
        for x in tokens
    ]
    heads = ("gain", "weight", "text before", "token", "thought")
    return Table(f"tokens that their thoughts {change} most", heads, rows)


def by_decile(table: TokenTable) -> list[Decile]:
    """What thinking does for easy and for hard tokens."""
    nll_base, nll_mix = (x[table.scored].double().numpy() for x in (table.nll_base, table.nll_mix))
    names, documents = np.unique(table.documents[table.scored].numpy(), return_inverse=True)
    deciles = []
    for part in np.array_split(nll_base.argsort(kind="stable"), 10):
        if not len(part):
            continue
        gain = nll_base[part] - nll_mix[part]
        counts = np.bincount(documents[part], minlength=len(names))
        sums, held = np.bincount(documents[part], gain, len(names)), counts > 0
        decile = Decile(
            low=float(nll_base[part].min()),
            high=float(nll_base[part].max()),
            tokens=len(part),
            documents=int(held.sum()),
            gain=float(gain.mean()),
            interval=ratio_estimate(sums[held], counts[held]).interval,
            nll_base=float(nll_base[part].mean()),
        )
        deciles.append(decile)
    return deciles


def frontier(table: TokenTable) -> list[FrontierPoint]:
    """What is gained against what is thought.

    Ten thresholds are quantiles of the entropy; the first lets every token think.
    """
    columns = (table.nll_base, table.nll_mix, table.entropy, table.length)
    nll_base, nll_mix, entropy, length = (x[table.scored].double().numpy() for x in columns)
    gain, result = nll_base - nll_mix, []
    for share in np.linspace(1, 0, 10, endpoint=False):
        above = float(np.quantile(entropy, 1 - share)) if share < 1 else 0.0
        thinks = entropy > above if share < 1 else np.ones(len(gain), bool)
        total, kept = gain.sum(), gain[thinks].sum()
        point = FrontierPoint(
            above=above,
            share=float(thinks.mean()),
            slots=float(1 + (thinks * (length + 2)).mean()),
            gain=float(kept / len(gain)),
            kept=float(kept / total) if total > 0 else None,
        )
        result.append(point)
    return result


def most_helped(
    table: TokenTable, count: int, context: int = 16
) -> tuple[list[TokenGain], list[TokenGain]]:
    """`count` tokens each that the thought before them helped most and hurt most.

    `context` tokens before each are kept.
    """
    gains = table.nll_base - table.nll_mix  # (R, T)
    places = table.scored.nonzero()  # (N, 2)
    order = gains[table.scored].argsort(descending=True, stable=True)

    def token(row: int, t: int) -> TokenGain:
        before = slice(max(0, t + 1 - context), t + 1)
        same = table.documents[row, before] == table.documents[row, t]
        return TokenGain(
            gain=gains[row, t].item(),
            weight=table.weight[row, t].item(),
            context=table.tokens[row, before][same].tolist(),
            target=table.tokens[row, t + 1].item(),
            thought=table.thoughts[row, t].tolist(),
        )

    best = [token(*place) for place in places[order[:count]].tolist()]
    worst = [token(*place) for place in places[order.flip(0)[:count]].tolist()]
    return [x for x in best if x.gain > 0], [x for x in worst if x.gain < 0]
