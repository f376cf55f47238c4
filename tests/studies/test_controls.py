"""controls: one thing is changed at a time, and a row says what was measured over all seeds."""

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, module

from qs.config import Config, ThoughtConfig
from qs.evaluation.heldout import Measured
from qs.evaluation.statistics import mean_estimate, ratio_estimate
from qs.evaluation.synthetic import AnswerTable
from qs.evaluation.tokens import Question, RowSums, TextRows
from qs.presets import PRESETS
from qs.quietstar.algorithm import PAUSE
from qs.studies.controls import (
    COMMENTS,
    EVALUATED,
    INTERVENTIONS,
    LENGTH,
    LENGTHS,
    OWN,
    PLAIN,
    SAME,
    TRAINED,
    UNTRAINED,
    BaselineRun,
    Control,
    Intervention,
    Selection,
    arm_list,
    baselines,
    control_row,
    control_tables,
    controls_notes,
    controls_table,
    keep_comments,
    length_list,
    random_tokens,
    repeated_start,
    shuffled,
)
from qs.tables import markdown, results_page

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


def test_every_baseline_differs_from_the_run_in_one_thing():
    differing = {baseline.name: changes(TINY, baseline.config) for baseline in baselines(TINY)}
    assert differing.pop("plain training") == differing.pop("pause tokens") == {"objective"}
    assert differing.pop("without REINFORCE (beta = 0)") == {"beta"}
    assert differing.pop("n = 0") == {"thoughts", "beta"}  # nothing to reward
    for name, changed in differing.items():
        letter = name.split(" = ")[0]
        assert changed == {{"m": "ahead", "K": "samples", "n": "thoughts"}[letter]}
    assert {"m = 2", "m = 4", "K = 2", "n = 1", "n = 2", "n = 4", "n = 8", "n = 12"} <= set(
        differing
    )


def test_the_run_itself_is_no_baseline_of_its_own():
    for samples in (2, 4):
        config = TINY.changed(samples=samples)
        assert f"K = {samples}" not in {baseline.name for baseline in baselines(config)}


def test_the_tables_measure_every_seed_as_it_was_trained():
    trained = {
        BaselineRun(b.name, b.config.changed(seed=seed)): Path(f"{b.name} {seed}")
        for seed in (0, 1)
        for b in [BaselineRun(OWN, TINY), *baselines(TINY)]
    }
    own = [Path(f"{OWN} 0"), Path(f"{OWN} 1")]
    tables = control_tables(Path("before"), trained)
    assert [control.name for control in tables[SAME]] == [i.name for i in INTERVENTIONS]
    names = [UNTRAINED, OWN, *(baseline.name for baseline in baselines(TINY))]
    assert [control.name for control in tables[TRAINED]] == names
    assert tables[TRAINED][0].checkpoints == (Path("before"),) * 2
    for control in tables[SAME] + tables[LENGTH]:
        assert list(control.checkpoints) == own
    for control in (control for table in tables.values() for control in table):
        assert [config.run.seed for config in control.configs] == [0, 1]
        assert control.trained == (control in tables[TRAINED][1:])
    for control in tables[LENGTH]:
        n = int(control.name.removeprefix("n = "))
        assert changes(TINY, control.configs[0]) == {*["thoughts"] * (n != 5), *["beta"] * (n == 0)}
        assert control.configs[0].thought.thoughts == n
    for control in tables[TRAINED][2:]:
        assert control.checkpoints == (Path(f"{control.name} 0"), Path(f"{control.name} 1"))


def test_lengths_in_evaluation_are_those_of_training_and_more_between():
    assert set(LENGTHS) < set(EVALUATED)
    assert set(EVALUATED) - set(LENGTHS) == {3, 6, 7, 10, 14}


@given(seed=seeds)
def test_shuffling_deals_out_the_thoughts_of_all_positions_but_padding(seed):
    _, documents = batch(seed)
    B, T = documents.shape
    thoughts = torch.arange(B * T * 3).view(B, T, 1, 3)
    quiet = module(ThoughtConfig())
    mixed = shuffled(quiet, documents, thoughts, torch.Generator().manual_seed(seed))
    inside = documents >= 0
    assert torch.equal(mixed[~inside], thoughts[~inside])
    assert sorted(mixed[inside].tolist()) == thoughts[inside].tolist()


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
    paused = repeated_start(
        module(ThoughtConfig()), thoughts[..., 0, 0], thoughts, torch.Generator()
    )
    assert paused.shape == thoughts.shape
    assert (paused == PAUSE).all()


def test_the_own_thoughts_come_first():
    assert INTERVENTIONS[0].name == OWN
    assert INTERVENTIONS[0].change is INTERVENTIONS[0].fixed_weight is None


def control(thinks: bool = True, name: str = "name", **settings) -> Control:
    """A row of models that think or do not."""
    return Control(name, (), (TINY.changed(objective="quiet" if thinks else "plain"),), **settings)


def drawn(seed: int, questions: int = 6, rows: int = 4) -> Measured:
    numbers = np.random.default_rng(seed)
    answers, sums = numbers.random((8, questions)), RowSums(*numbers.random((5, rows)) + 1)
    return Measured(AnswerTable(*answers)._replace(useful=answers[4] < 0.5), sums, sums)


def gold_of(measured: Measured, thinks: bool) -> np.ndarray:
    return measured.answers.gold_mix if thinks else measured.answers.gold_base


def nll_of(measured: Measured, thinks: bool) -> np.ndarray:
    """Of other tokens, by row."""
    return measured.other.nll_mix if thinks else measured.other.nll_base


@given(first=seeds, count=st.integers(1, 4), thinks=st.booleans())
def test_differences_are_paired_by_question_and_by_row_of_text(first, count, thinks):
    found, before, other = ([drawn(first + 9 * k + i) for i in range(count)] for k in range(3))
    for one, two in zip(found, before, strict=True):  # the same rows of text
        two.other.tokens[:] = one.other.tokens
    line = control_row(control(thinks), found, before=before, unrewarded=other)
    pairs = ((line.gold_change, before, False), (line.gold_unrewarded, other, True))
    for difference, others, theirs in pairs:
        both = zip(found, others, strict=True)
        values = [gold_of(f, thinks) - gold_of(o, theirs) for f, o in both]
        assert difference == pytest.approx(mean_estimate(np.mean(values, 0)))
    sums = np.mean(
        [nll_of(f, thinks) - nll_of(b, False) for f, b in zip(found, before, strict=True)], 0
    )
    counts = np.mean([f.other.tokens for f in found], 0)
    assert line.other_change == pytest.approx(ratio_estimate(sums, counts))
    alone = control_row(control(), found)
    assert alone.gold_change is alone.gold_unrewarded is alone.other_change is None


@given(first=seeds, count=st.integers(1, 4), thinks=st.booleans())
def test_a_row_holds_means_over_questions_and_seeds(first, count, thinks):
    found = [drawn(first + i) for i in range(count)]
    line = control_row(control(thinks), found)
    gold = [gold_of(f, thinks) for f in found]
    assert line.seeds == count
    assert line.gold == pytest.approx(mean_estimate(np.mean(gold, 0)))
    assert line.gold_seeds == pytest.approx(
        (min(g.mean() for g in gold), max(g.mean() for g in gold))
    )
    assert line.nll == pytest.approx(
        np.mean([f.answers.nll_mix if thinks else f.answers.nll_base for f in found])
    )
    sums = np.mean([nll_of(f, thinks) for f in found], 0)
    counts = np.mean([f.other.tokens for f in found], 0)
    assert line.other == pytest.approx(ratio_estimate(sums, counts))
    if thinks:
        assert line.useful == pytest.approx(np.mean([f.answers.useful for f in found]))
    else:
        assert line.useful is line.weight is line.useful_seeds is None
    for replaced in (Intervention("", repeated_start), Intervention("", fixed_weight=0.0)):
        assert control_row(control(intervention=replaced), found).useful is None


def test_the_table_has_a_cell_for_every_column():
    one = control_row(control(name="one"), [drawn(0)])
    two = control_row(control(False, "two"), [drawn(1), drawn(2)])
    two = dataclasses.replace(two, seconds=61.4)
    table = controls_table("Title", [one, two])
    assert {len(line) for line in table.rows} == {len(table.heads)} == {11}
    assert not any("(" in cell for cell in table.rows[0])  # one seed has no spread
    assert table.rows[1][:2] == ("two", "2")
    assert "(" in table.rows[1][2]
    assert table.rows[1][-1] == "61"


def test_differences_and_missing_rewards_are_shown():
    found = [drawn(0), drawn(1)]
    line = control_row(control(name="m = 4"), found, before=found)
    (cells,) = controls_table("", [dataclasses.replace(line, rewarded=0.25)]).rows
    assert cells[0] == "m = 4 (75 % of the answers earn no reward)"
    assert re.fullmatch(r"[+-]0\.\d{3} ± 0\.\d{3}", cells[3])
    assert cells[4] == "-"
    (cells,) = controls_table("", [dataclasses.replace(line, rewarded=1.0)]).rows
    assert cells[0] == "m = 4"


def test_the_notes_count_what_was_measured_and_name_the_temperature():
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, -1, -1]])
    text = TextRows(tokens, documents, [Question(0, 1, "sum", 3, (1, 2), 0, (3,))])
    found = " ".join(controls_notes(text, 0.5).split())
    assert found.startswith("1 questions and 6 other tokens in 2 rows of held-out text.")
    assert "one thought sampled at temperature 0.5 before every token" in found
    assert "one thought sampled greedily before" in " ".join(controls_notes(text, 0.0).split())


def test_what_a_person_wrote_below_the_tables_is_kept(tmp_path):
    path = tmp_path / "results" / "controls.md"
    table = controls_table("A table", [control_row(control(), [drawn(0)])])
    text = results_page("Controls", "the command", "How to read.\n", [table])
    assert text == f"# Controls\n\n```sh\nthe command\n```\n\nHow to read.\n\n{markdown(table)}"
    keep_comments(path, text)
    assert path.read_text() == text
    path.write_text(f"old\n{COMMENTS}\n\nA sentence.\n")
    keep_comments(path, text)
    assert path.read_text() == f"{text}\n{COMMENTS}\n\nA sentence.\n"


def test_a_page_that_cannot_be_read_is_left_and_named(tmp_path):
    path = tmp_path / "page.md"
    path.write_bytes(written := f"old\n{COMMENTS}\nMy words\n".encode("utf-16"))
    with pytest.raises(
        ValueError, match=r"page\.md, line 1: expected text in UTF-8, found b'.xff'"
    ):
        keep_comments(path, "new")
    assert path.read_bytes() == written


def test_arms_and_lengths_are_chosen_by_name():
    config = Config()
    chosen = Selection(arm_list("n,plain"), length_list("8,0,8"))
    named = [baseline.name for baseline in baselines(config, chosen)]
    assert named == [PLAIN, "n = 0", "n = 8"]
    assert chosen.told == "-plain-n-lengths-0-8"
    assert (arm_list("none"), Selection().told) == ((), "")
    with pytest.raises(argparse.ArgumentTypeError, match=r"none, or some of plain,.*mean pause\?"):
        arm_list("plain,pauze")
    with pytest.raises(argparse.ArgumentTypeError, match="such as 0,5,8; got '0,-1'"):
        length_list("0,-1")
