"""Controls: what else could have made the difference that is claimed for thinking.

Two sorts. With the weights of a run, its thoughts are replaced (`INTERVENTIONS`). With the run's
data, order of rows, number of steps and seed, something else is trained (`baselines`). All are
measured on the same held-out text and questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qs.config import PADDING, Config
from qs.evaluation.heldout import Measured
from qs.evaluation.statistics import Estimate, mean_estimate, paired, ratio_estimate
from qs.evaluation.tokens import Change, TextRows
from qs.files import write_text
from qs.quietstar.algorithm import PAUSE, QuietStar
from qs.tables import Table, markdown

LENGTHS = (0, 1, 2, 4, 8, 12)  # n that is trained
EVALUATED = (0, 1, 2, 3, 4, 6, 7, 8, 10, 12, 14)  # n in evaluation only; the run's own is added
# names of rows and titles of tables that others refer to
OWN, BEFORE = "Quiet-STaR", "before training"
PLAIN, PAUSES, UNREWARDED = "plain training", "pause tokens", "without REINFORCE (beta = 0)"
SAME = "Same weights, other thoughts"
LENGTH = "Same weights, another thought length at evaluation"
TRAINED = "Trained on the same rows for the same number of steps"


def shuffled(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """Thoughts (B, T, 1, n) dealt out anew among the positions of the batch, padding left out."""
    inside = (documents != PADDING).flatten().nonzero().flatten()  # of B T positions
    order = torch.randperm(len(inside), generator=generator).to(inside.device)
    mixed = thoughts.flatten(0, 1).clone()  # (B T, 1, n)
    mixed[inside] = mixed[inside[order]]
    return mixed.view_as(thoughts)


def random_tokens(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """Tokens drawn evenly from all that a thought may hold."""
    config = quiet.model.config
    allowed = torch.tensor(sorted(set(range(config.vocab_size)) - set(config.forbidden)))
    drawn = torch.randint(len(allowed), thoughts.shape, generator=generator)
    return allowed[drawn].to(thoughts.device)


def repeated_start(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """The start token repeated."""
    return torch.full_like(thoughts, PAUSE)


@dataclass(frozen=True)
class Intervention:
    """What is done to the thoughts of a trained model while it is measured."""

    name: str  # of the row
    change: Change | None = None  # gives other thoughts; None: its own
    fixed_weight: float | None = None  # mixing weight; None: the head's


INTERVENTIONS = (
    Intervention(OWN),
    Intervention("thoughts off (weight 0)", fixed_weight=0.0),
    Intervention("always the thought (weight 1)", fixed_weight=1.0),
    Intervention("thoughts shuffled between positions", shuffled),
    Intervention("random tokens as thoughts", random_tokens),
    Intervention("start token repeated as thoughts", repeated_start),
)


@dataclass(frozen=True)
class BaselineRun:
    """Something else to train; its name is that of its row and of its folder."""

    name: str
    config: Config


def baselines(config: Config) -> list[BaselineRun]:
    """What is trained beside a run with these settings: one thing differs from it each time."""
    candidates = [
        BaselineRun(PLAIN, config.changed(objective="plain")),
        BaselineRun(PAUSES, config.changed(objective="pause")),
        BaselineRun(UNREWARDED, config.changed(beta=0.0)),
        *(BaselineRun(f"m = {m}", config.changed(ahead=m)) for m in (1, 2, 4)),
        *(BaselineRun(f"K = {K}", config.changed(samples=K)) for K in (2, 4)),
        *(BaselineRun(f"n = {n}", with_length(config, n)) for n in LENGTHS),
    ]
    return [baseline for baseline in candidates if baseline.config != config]


def with_length(config: Config, n: int) -> Config:
    """The same with thoughts of n tokens; without any, REINFORCE has nothing to reward."""
    return config.changed(thoughts=n, beta=config.thought.beta if n else 0.0)


@dataclass(frozen=True)
class Control:
    """What a row of a table measures: checkpoints with settings, one of each for every seed."""

    name: str
    checkpoints: tuple[Path, ...]
    configs: tuple[Config, ...]
    intervention: Intervention = INTERVENTIONS[0]
    trained: bool = False  # whether the row tells of their training


def control_tables(
    config: Config, before: Path, own: Sequence[Path], trained: Mapping[BaselineRun, Path]
) -> dict[str, list[Control]]:
    """What is measured in each row of each table, by the table's title.

    Args:
        config: of the run.
        before: checkpoint that training begins from.
        own, trained: last checkpoints of the run with each seed, and of the baselines of all seeds.
    """
    seeds = tuple(config.changed(seed=config.run.seed + i) for i in range(len(own)))
    run = Control(OWN, tuple(own), seeds, trained=True)
    tables = {SAME: [run], LENGTH: [], TRAINED: [Control(BEFORE, (before,) * len(own), seeds), run]}
    for intervention in INTERVENTIONS[1:]:
        tables[SAME].append(Control(intervention.name, run.checkpoints, seeds, intervention))
    for n in sorted({*EVALUATED, config.thought.thoughts}):
        configs = tuple(with_length(each, n) for each in seeds)
        tables[LENGTH].append(Control(f"n = {n}", run.checkpoints, configs))
    for name in dict.fromkeys(baseline.name for baseline in trained):
        group = {b.config: step for b, step in trained.items() if b.name == name}
        tables[TRAINED].append(Control(name, tuple(group.values()), tuple(group), trained=True))
    return tables


@dataclass(frozen=True)
class ControlRow:
    """A row of a table: means over seeds, with 95 % intervals.

    Intervals have questions (of other tokens: rows of text) as units, each its mean over seeds.
    Changes are against the model before training, without thoughts, and against UNREWARDED; paired
    by unit; None: not compared. NLL in nats.
    """

    name: str
    seeds: int  # how many
    gold: Estimate  # gold answer probability
    gold_seeds: tuple[float, float]  # smallest and largest seed
    gold_change: Estimate | None
    gold_unrewarded: Estimate | None
    nll: float  # at the answers
    useful: float | None  # share of thoughts with the steps; None: no sampled thoughts
    useful_seeds: tuple[float, float] | None
    weight: float | None  # mean mixing weight at the answers; None: no thoughts
    other: Estimate  # NLL of all other tokens
    other_change: Estimate | None
    seconds: float | None = None  # of training; None where the row tells of none
    rewarded: float | None = None  # share of the answers whose thoughts REINFORCE rewarded in it


def control_row(
    control: Control,
    measured: Sequence[Measured],
    before: Sequence[Measured] = (),
    unrewarded: Sequence[Measured] = (),
    seconds: float | None = None,
    rewarded: float | None = None,
) -> ControlRow:
    """Summarise what was measured of a control, once for each seed on the same questions.

    `before` and `unrewarded` are what it is compared with, if anything.
    """
    config, intervention = control.configs[0], control.intervention
    thinks = config.run.thinks
    # of thoughts that are not mixed in, or not its own, nothing is told
    sampled = intervention.change is None and intervention.fixed_weight != 0.0 and config.sampled
    gold = _gold(measured, thinks)  # (seeds, Q)
    questions = gold.mean(0)  # (Q,)
    useful = np.stack([m.answers.useful for m in measured]).mean(1)  # (seeds,)
    sums, counts = _other(measured, thinks)
    return ControlRow(
        name=control.name,
        seeds=len(measured),
        gold=Estimate(float(gold.mean()), mean_estimate(questions).interval),
        gold_seeds=_ends(gold.mean(1)),
        gold_change=paired(_gold(before, False).mean(0), questions) if before else None,
        gold_unrewarded=paired(_gold(unrewarded, True).mean(0), questions) if unrewarded else None,
        nll=float(np.mean([m.answers.nll_mix if thinks else m.answers.nll_base for m in measured])),
        useful=float(useful.mean()) if sampled else None,
        useful_seeds=_ends(useful) if sampled else None,
        weight=float(np.mean([m.answers.weight for m in measured])) if thinks else None,
        other=ratio_estimate(sums, counts),
        other_change=ratio_estimate(sums - _other(before, False)[0], counts) if before else None,
        seconds=seconds,
        rewarded=rewarded,
    )


def _gold(measured: Sequence[Measured], thinks: bool) -> np.ndarray:
    """(seeds, Q) gold answer probability, with or without a thought."""
    return np.stack([m.answers.gold_mix if thinks else m.answers.gold_base for m in measured])


def _other(measured: Sequence[Measured], thinks: bool) -> tuple[np.ndarray, np.ndarray]:
    """(R,) sums of NLL and numbers of other tokens in each row of text, means over seeds."""
    sums = [m.other.nll_mix if thinks else m.other.nll_base for m in measured]
    return np.mean(sums, 0), np.mean([m.other.tokens for m in measured], 0)


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


# ---- the page ------------------------------------------------------------------------------------
def controls_notes(text: TextRows, temperature: float) -> str:
    """What a reader of the tables needs to know of a text and the temperature of thoughts."""
    same = text.documents[:, 1:] == text.documents[:, :-1]
    targets = int((same & (text.documents[:, 1:] != PADDING)).sum())
    questions, rows = len(text.questions), len(text.tokens)
    how = f"at temperature {temperature:g}" if temperature else "greedily"
    counts = f"{questions:,} questions and {targets - questions:,} other tokens in {rows:,} rows"
    return f"""{counts} of held-out text.
Means over seeds; ± is half of a 95 % interval over questions (for other tokens: over rows of text),
each taken as its mean over seeds; in brackets the smallest and the largest seed. Gold answer
probability is renormalised over possible answers, on questions whose working is left out, one
thought sampled {how} before every token. "minus" is the paired difference on the same
questions or rows of text: from the model before training, without thoughts, and from the row
`{UNREWARDED}`. The row `{BEFORE}` thinks with the start and end
vectors that training begins from. A thought earns a reward only if its m tokens are left in the
document: where a row says that answers earn none, REINFORCE never saw their thoughts, and the row
is no fair comparison.
"""


def controls_table(title: str, rows: Sequence[ControlRow]) -> Table:
    """Rows as text."""
    heads = ("control", "seeds", "gold answer probability", "minus before training")
    heads += ("minus beta = 0", "NLL at answers", "thoughts with the steps", "weight at answers")
    heads += ("NLL of other tokens", "minus before training", "training, s")
    return Table(title, heads, [_cells(row) for row in rows])


def _cells(row: ControlRow) -> tuple[str, ...]:
    def text(value: Estimate | float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def seeds(ends: tuple[float, float] | None) -> str:
        return "" if ends is None or row.seeds < 2 else f" ({ends[0]:.3f} to {ends[1]:.3f})"

    name = row.name
    if row.rewarded is not None and row.rewarded < 1:
        name += f" ({100 * (1 - row.rewarded):.0f} % of the answers earn no reward)"
    return (
        name,
        str(row.seeds),
        text(row.gold, ".3f") + seeds(row.gold_seeds),
        text(row.gold_change, "+.3f"),
        text(row.gold_unrewarded, "+.3f"),
        text(row.nll, ".2f"),
        text(row.useful, ".3f") + seeds(row.useful_seeds),
        text(row.weight, ".2f"),
        text(row.other, ".4f"),
        text(row.other_change, "+.4f"),
        text(row.seconds, ".0f"),
    )


COMMENTS = "## What the rows show"  # where a person's own words on a page begin


def study_page(title: str, command: str, about: str, tables: Sequence[Table]) -> str:
    """Tables as a Markdown page that says what made it (`command`) and how to read it (`about`)."""
    return "\n".join([f"# {title}\n\n```sh\n{command}\n```\n\n{about}", *map(markdown, tables)])


def keep_comments(path: Path, text: str) -> None:
    """Write a page; what a person wrote below COMMENTS is kept."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    comments = old[old.index(COMMENTS) :] if COMMENTS in old else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{text}\n{comments}" if comments else text)
