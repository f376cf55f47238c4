"""controls: one thing is changed at a time, and a row says what was measured over all seeds."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, module

from qs.config import PRESETS, Config, ThoughtConfig
from qs.evaluation.statistics import mean_interval, ratio_interval
from qs.evaluation.synthetic import Marked, Measured, Question
from qs.quietstar.algorithm import PAUSE
from qs.studies.controls import (
    COMMENTS,
    EVALUATED,
    HEADS,
    LENGTHS,
    OWN,
    REPLACED,
    keep_comments,
    markdown,
    notes,
    page,
    pauses,
    random_tokens,
    rivals,
    row,
    shuffled,
    with_seed,
)

TINY = PRESETS["tiny"]
seeds = st.integers(0, 2**32 - 1)


def changes(one: Config, other: Config) -> set[str]:
    """Names of the settings in which two runs differ."""
    first, second = one.to_json(), other.to_json()
    return {
        name
        for group in first
        for name in first[group]
        if first[group][name] != second[group][name]
    }


def test_every_rival_differs_from_the_run_in_one_thing():
    found = {rival.name: changes(TINY, rival.config) for rival in rivals(TINY)}
    assert found.pop("plain training") == found.pop("pause tokens") == {"objective"}
    assert found.pop("without REINFORCE (beta = 0)") == {"beta"}
    assert found.pop("n = 0") == {"thoughts", "beta"}  # nothing to reward
    for name, changed in found.items():
        letter = name.split(" = ")[0]
        assert changed == {{"m": "ahead", "K": "samples", "n": "thoughts"}[letter]}
    assert {"m = 2", "m = 4", "K = 2", "n = 1", "n = 2", "n = 4", "n = 8", "n = 12"} <= set(found)


def test_the_run_itself_is_no_rival_of_its_own():
    for samples in (2, 4):
        thought = dataclasses.replace(TINY.thought, samples=samples)
        config = dataclasses.replace(TINY, thought=thought)
        assert f"K = {samples}" not in {rival.name for rival in rivals(config)}
    assert {rival.thinks for rival in rivals(TINY) if rival.name.startswith("plain")} == {False}
    assert {r.name for r in rivals(TINY) if not r.sampled} == {
        "plain training",
        "pause tokens",
        "n = 0",
    }


def test_lengths_in_evaluation_are_those_of_training_and_more_between():
    assert set(LENGTHS) < set(EVALUATED)
    assert set(EVALUATED) - set(LENGTHS) == {3, 6, 7, 10, 14}


def test_another_seed_is_the_only_change():
    assert changes(TINY, with_seed(TINY, 5)) == {"seed"}


@given(seed=seeds)
def test_shuffling_deals_out_the_thoughts_of_all_positions_but_padding(seed):
    _, documents = batch(seed)
    B, T = documents.shape
    thoughts = torch.arange(B * T * 3).view(B, T, 1, 3)
    quiet = module(ThoughtConfig())
    mixed = shuffled(quiet, documents, thoughts, torch.Generator().manual_seed(seed))
    there = documents >= 0
    assert torch.equal(mixed[~there], thoughts[~there])
    assert sorted(mixed[there].tolist()) == thoughts[there].tolist()


def test_shuffling_moves_nearly_all_thoughts():
    documents = torch.zeros(8, 32, dtype=torch.int64)
    thoughts = torch.arange(8 * 32).view(8, 32, 1, 1)
    mixed = shuffled(module(ThoughtConfig()), documents, thoughts, torch.Generator().manual_seed(0))
    assert (mixed == thoughts).float().mean() < 0.05


def test_random_tokens_are_all_that_a_thought_may_hold_equally_often():
    quiet = module(ThoughtConfig())
    thoughts = torch.zeros(50, 20, 1, 11, dtype=torch.int64)
    drawn = random_tokens(quiet, thoughts[..., 0, 0], thoughts, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.flatten(), minlength=11)
    forbidden = list(quiet.model.config.forbidden)
    assert forbidden
    assert (counts[forbidden] == 0).all()
    share = counts[counts > 0] / drawn.numel()
    assert ((share - 1 / len(share)).abs() < 0.02).all()


def test_pauses_have_the_shape_of_the_thoughts():
    thoughts = torch.zeros(2, 3, 1, 4, dtype=torch.int64)
    paused = pauses(module(ThoughtConfig()), thoughts[..., 0, 0], thoughts, torch.Generator())
    assert paused.shape == thoughts.shape
    assert (paused == PAUSE).all()


def test_the_own_thoughts_come_first():
    assert REPLACED[0].name == OWN
    assert REPLACED[0].change is REPLACED[0].fixed_weight is None


def some(seed: int, questions: int = 6, rows: int = 4) -> Measured:
    numbers = np.random.default_rng(seed)
    other = numbers.random((rows, 4)) + 1
    return Measured(
        numbers.random((questions, 2)),
        numbers.random((questions, 2)),
        numbers.random(questions) < 0.5,
        numbers.random(questions),
        numbers.random(questions),
        other,
        other,
    )


@given(first=seeds, count=st.integers(1, 4), thinks=st.booleans())
def test_differences_are_paired_by_question_and_by_row_of_text(first, count, thinks):
    found, before, other = ([some(first + 9 * k + i) for i in range(count)] for k in range(3))
    for one, two in zip(found, before, strict=True):  # the same rows of text
        two.other[:, 0] = one.other[:, 0]
    line = row("name", found, thinks, before=before, unrewarded=other)
    column = int(thinks)
    pairs = ((line.gold_change, before, 0), (line.gold_unrewarded, other, 1))
    for difference, others, theirs in pairs:
        values = [f.gold[:, column] - o.gold[:, theirs] for f, o in zip(found, others, strict=True)]
        assert difference == pytest.approx((np.mean(values), mean_interval(np.mean(values, 0))))
    sums = np.mean(
        [f.other[:, 1 + column] - b.other[:, 1] for f, b in zip(found, before, strict=True)], 0
    )
    counts = np.mean([f.other[:, 0] for f in found], 0)
    expected = sums.sum() / counts.sum(), ratio_interval(sums, counts)
    assert line.other_change == pytest.approx(expected)
    alone = row("name", found)
    assert alone.gold_change is alone.gold_unrewarded is alone.other_change is None


@given(first=seeds, count=st.integers(1, 4), thinks=st.booleans())
def test_a_row_holds_means_over_questions_and_seeds(first, count, thinks):
    found = [some(first + i) for i in range(count)]
    line = row("name", found, thinks, seconds=3.0)
    column = int(thinks)
    gold = [f.gold[:, column] for f in found]
    assert line.seeds == count
    assert line.gold == pytest.approx(np.mean(gold))
    assert line.gold_interval == pytest.approx(mean_interval(np.mean(gold, 0)))
    assert line.gold_seeds == pytest.approx(
        (min(g.mean() for g in gold), max(g.mean() for g in gold))
    )
    assert line.nll == pytest.approx(np.mean([f.nll[:, column] for f in found]))
    sums = np.mean([f.other[:, 1 + column] for f in found], 0)
    counts = np.mean([f.other[:, 0] for f in found], 0)
    assert line.other == pytest.approx(sums.sum() / counts.sum())
    assert line.other_interval == pytest.approx(ratio_interval(sums, counts))
    if thinks:
        assert line.useful == pytest.approx(np.mean([f.useful for f in found]))
    else:
        assert line.useful is line.weight is line.useful_seeds is None
    assert row("name", found, sampled=False).useful is None


def test_the_markdown_has_a_cell_for_every_column():
    lines = [row("one", [some(0)]), row("two", [some(1), some(2)], thinks=False, seconds=61.4)]
    table = markdown(lines).splitlines()
    assert [line.count("|") for line in table] == [len(HEADS) + 1] * 4
    assert "(" not in table[2]  # one seed has no spread
    assert table[3].startswith("| two | 2 | ")
    assert table[3].endswith("| 61 |")


def test_differences_and_missing_rewards_are_shown():
    found = [some(0), some(1)]
    (line,) = markdown([row("m = 4", found, before=found, rewarded=0.25)]).splitlines()[2:]
    assert line.startswith("| m = 4 (75 % of the answers earn no reward) | 2 |")
    assert re.search(r" \| [+-]0\.\d{3} ± 0\.\d{3} \| - \| ", line)
    (line,) = markdown([row("m = 1", found, rewarded=1.0)]).splitlines()[2:]
    assert line.startswith("| m = 1 | 2 |")


def test_the_notes_count_what_was_measured_and_name_the_temperature():
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, -1, -1]])
    text = Marked(tokens, documents, [Question(0, 1, "sum", 3, (1, 2), 0, (3,))])
    found = " ".join(notes(text, 0.5).split())
    assert found.startswith("1 questions and 6 other tokens in 2 rows of held-out text.")
    assert "one thought sampled at temperature 0.5 before every token" in found
    assert "one thought sampled greedily before" in " ".join(notes(text, 0.0).split())


def test_what_a_person_wrote_below_the_tables_is_kept(tmp_path):
    path = tmp_path / "results" / "controls.md"
    made = {"Measured with": "torch 2"}
    text = page({"A table": [row("one", [some(0)])]}, "the command", made, "How to read.")
    for part in ("the command", "Measured with torch 2.", "How to read.", "## A table"):
        assert part in text
    keep_comments(path, text)
    assert path.read_text() == text
    path.write_text(f"old\n{COMMENTS}\n\nA sentence.\n")
    keep_comments(path, text)
    assert path.read_text() == f"{text}\n{COMMENTS}\n\nA sentence.\n"
