"""Controls: what else could have made the difference that is claimed for thinking.

Two sorts. With the weights of a run, its thoughts are replaced (`INTERVENTIONS`). With the run's
data, order of rows, number of steps and seed, something else is trained (`baselines`). All are
measured on the same held-out text and questions.
"""

import argparse
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from qs.atomic import write_text
from qs.cli import listed
from qs.config import PADDING, Config
from qs.evaluation.heldout import Measured
from qs.evaluation.statistics import Estimate, mean_estimate, paired, ratio_estimate
from qs.evaluation.tokens import Change, TextRows
from qs.files import text_lines
from qs.locks import make_folder
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED, PAUSE
from qs.quietstar.sampler import allowed_ids
from qs.studies.rows import row_config
from qs.tables import Table

LENGTHS = (0, 1, 2, 4, 8, 12)  # n that is trained
EVALUATED = (0, 1, 2, 3, 4, 6, 7, 8, 10, 12, 14)  # n in evaluation only; the run's own is added
ARMS = ("plain", "pause", "no-reinforce", "m=1", "m=2", "m=4", "K=2", "K=4", "n")  # n: every length
# names of rows and titles of tables that others refer to
OWN, UNTRAINED = "Quiet-STaR", "before training"
PLAIN, PAUSES, UNREWARDED = "plain training", "pause tokens", "without REINFORCE (beta = 0)"
SAME = "Same weights, other thoughts"
LENGTH = "Same weights, another thought length at evaluation"
TRAINED = "Trained on the same rows for the same number of steps"


def shuffled(quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: Generator) -> Tensor:
    """Thoughts (B, T, 1, n) dealt out anew among the positions of the batch, padding left out."""
    inside = (documents != PADDING).flatten().nonzero().flatten()  # of B T positions
    order = torch.randperm(len(inside), generator=generator).to(inside.device)
    mixed = thoughts.flatten(0, 1).clone()  # (B T, 1, n)
    mixed[inside] = mixed[inside[order]]
    return mixed.view_as(thoughts)


def random_tokens(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: Generator
) -> Tensor:
    """Tokens drawn evenly from all that a thought may hold; each thought keeps its length."""
    config = quiet.model.config
    allowed = allowed_ids(config.vocab_size, set(config.forbidden), thoughts.device)
    other = allowed[torch.randint(len(allowed), thoughts.shape, generator=generator)]
    return other.where(thoughts != ENDED, ENDED)


def repeated_start(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: Generator
) -> Tensor:
    """The start token repeated, as often as there were tokens."""
    return torch.full_like(thoughts, PAUSE).where(thoughts != ENDED, ENDED)


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

    def __str__(self) -> str:
        return f"training {self.name}, seed {self.config.run.seed}"


@dataclass(frozen=True)
class Selection:
    """Which controls are wanted."""

    arms: tuple[str, ...] = ARMS  # that are trained
    lengths: tuple[int, ...] | None = None  # n evaluated, and trained by arm n; None: all

    @property
    def told(self) -> str:
        """What names of files say of it; "" of everything."""
        arms = "" if self.arms == ARMS else "-" + ("-".join(self.arms) or "none")
        lengths = "" if self.lengths is None else "-".join(["-lengths", *map(str, self.lengths)])
        return arms + lengths


EVERYTHING = Selection()


def arm_list(names: str) -> tuple[str, ...]:
    """Names of ARMS, split at commas, in their order; "none": of none."""
    asked = listed(names, ARMS, none=True)
    return tuple(arm for arm in ARMS if arm in asked)


def length_list(lengths: str) -> tuple[int, ...]:
    """Numbers of tokens, split at commas, each once and in order."""
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", lengths):
        raise argparse.ArgumentTypeError(f"expected lengths such as 0,5,8; got {lengths!r}")
    return tuple(sorted({int(length) for length in lengths.split(",")}))


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The flags that a `Selection` is made of."""
    which = f"what is trained, of {','.join(ARMS)} (every length); none: with one seed, nothing"
    parser.add_argument("--arms", type=arm_list, default=ARMS, metavar="LIST", help=which)
    which = "n evaluated, and trained by arm n, such as 0,5,8"
    parser.add_argument("--lengths", type=length_list, metavar="LIST", help=which)


def baselines(config: Config, selection: Selection = EVERYTHING) -> list[BaselineRun]:
    """What is trained beside a run with these settings: one thing differs from it each time.

    With it goes what it rules out, such as a curriculum (`row_config`).

    Raises:
        ValueError: the run has no such row.
    """
    lengths = selection.lengths or LENGTHS
    arms = {
        "plain": {PLAIN: {"objective": "plain"}},
        "pause": {PAUSES: {"objective": "pause"}},
        "no-reinforce": {UNREWARDED: {"beta": 0.0}},
        **{f"m={m}": {f"m = {m}": {"ahead": m}} for m in (1, 2, 4)},
        **{f"K={K}": {f"K = {K}": {"samples": K}} for K in (2, 4)},
        "n": {f"n = {n}": length_changes(config, n) for n in lengths},
    }
    candidates = [
        BaselineRun(name, row_config(config, name, changes))
        for arm in selection.arms
        for name, changes in arms[arm].items()
    ]
    return [baseline for baseline in candidates if baseline.config != config]


def length_changes(config: Config, n: int) -> dict[str, Any]:
    """Thoughts of n tokens; without any, REINFORCE has nothing to reward."""
    return {"thoughts": n, "beta": config.thought.beta if n else 0.0}


@dataclass(frozen=True)
class Control:
    """What a row of a table measures: checkpoints with settings, one of each for every seed."""

    name: str
    checkpoints: tuple[Path, ...]
    configs: tuple[Config, ...]
    intervention: Intervention = INTERVENTIONS[0]
    trained: bool = False  # whether the row tells of their training


def control_tables(
    before: Path, trained: Mapping[BaselineRun, Path], selection: Selection = EVERYTHING
) -> dict[str, list[Control]]:
    """What is measured in each row of each table, by the table's title.

    Training began from the checkpoint `before` and ended with those of `trained`: of the run, whose
    name is OWN, and of its baselines, with every seed.
    """
    rows = {}
    for name in dict.fromkeys(job.name for job in trained):
        group = {job.config: step for job, step in trained.items() if job.name == name}
        rows[name] = Control(name, tuple(group.values()), tuple(group), trained=True)
    own = rows[OWN]
    seeds, steps = own.configs, own.checkpoints
    lengths = {
        (name := f"n = {n}"): tuple(row_config(c, name, length_changes(c, n)) for c in seeds)
        for n in sorted({*(selection.lengths or EVALUATED), seeds[0].thought.thoughts})
    }
    return {
        SAME: [own, *(Control(each.name, steps, seeds, each) for each in INTERVENTIONS[1:])],
        LENGTH: [Control(name, steps, configs) for name, configs in lengths.items()],
        TRAINED: [Control(UNTRAINED, (before,) * len(seeds), seeds), *rows.values()],
    }


def _column(head: str, form: str = "", **default: Any) -> Any:
    return dataclasses.field(metadata={"head": head, "form": form}, **default)


@dataclass(frozen=True)
class ControlRow:
    """A row of a table: means over seeds, with 95 % intervals.

    Intervals have questions (of other tokens: rows of text) as units, each its mean over seeds.
    Changes are against the model before training, without thoughts, and against UNREWARDED; paired
    by unit; None: not compared. NLL in nats. `x_seeds`: smallest and largest seed of x.
    """

    name: str
    seeds: int = _column("seeds")  # how many
    gold: Estimate = _column("gold answer probability", ".3f")
    gold_seeds: tuple[float, float]
    gold_change: Estimate | None = _column("minus before training", "+.3f")
    gold_unrewarded: Estimate | None = _column("minus beta = 0", "+.3f")
    nll: float = _column("NLL at answers", ".2f")
    useful: float | None = _column("thoughts with the steps", ".3f")  # None: none is sampled
    useful_seeds: tuple[float, float] | None
    weight: float | None = _column("weight at answers", ".2f")  # None: no thoughts
    other: Estimate = _column("NLL of other tokens", ".4f")
    other_change: Estimate | None = _column("minus before training", "+.4f")
    seconds: float | None = _column("training, s", ".0f", default=None)  # None: it tells of none
    rewarded: float | None = None  # share of the answers whose thoughts REINFORCE rewarded in it

    @property
    def label(self) -> str:
        """Its name, and what its training never rewarded."""
        if self.rewarded is None or self.rewarded == 1:
            return self.name
        return f"{self.name} ({100 * (1 - self.rewarded):.0f} % of the answers earn no reward)"


Measurements = Sequence[Measured]  # of one control, on the same questions; one for each seed


def control_row(
    control: Control,
    measured: Measurements,
    before: Measurements = (),
    unrewarded: Measurements = (),
) -> ControlRow:
    """Summarise what was measured of a control, beside what it is compared with, if anything."""
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
    )


def _gold(measured: Measurements, thinks: bool) -> np.ndarray:
    """(seeds, Q) gold answer probability, with or without a thought."""
    return np.stack([m.answers.gold_mix if thinks else m.answers.gold_base for m in measured])


def _other(measured: Measurements, thinks: bool) -> tuple[np.ndarray, np.ndarray]:
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
`{UNREWARDED}`. The row `{UNTRAINED}` thinks with the start and end
vectors that training begins from. A thought earns a reward only if its m tokens are left in the
document: where a row says that answers earn none, REINFORCE never saw their thoughts, and the row
is no fair comparison.
"""


def controls_table(title: str, rows: Sequence[ControlRow]) -> Table:
    """Rows as text."""
    columns = [f for f in dataclasses.fields(ControlRow) if f.metadata]
    heads = ("control", *(f.metadata["head"] for f in columns))
    cells = [(row.label, *(_cell(row, f) for f in columns)) for row in rows]
    return Table(title, heads, cells)


def _cell(row: ControlRow, column: dataclasses.Field) -> str:
    value, ends = getattr(row, column.name), getattr(row, f"{column.name}_seeds", None)
    if value is None:
        return "-"
    spread = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends and row.seeds > 1 else ""
    return format(value, column.metadata["form"]) + spread


COMMENTS = "## What the rows show"  # where a person's own words on a page begin


def keep_comments(path: Path, text: str) -> None:
    """Write a page; what a person wrote below COMMENTS is kept.

    Raises:
        ValueError: a page is there that is no UTF-8.
        OSError: the disk refuses, or a pipe or device is there.
    """
    lines = io.BytesIO(path.read_bytes() if path.is_file() else b"")
    old = "".join(f"{line}\n" for line in text_lines(lines, str(path)))
    comments = old[old.index(COMMENTS) :] if COMMENTS in old else ""
    make_folder(path.parent)
    write_text(path, f"{text}\n{comments}" if comments else text)
