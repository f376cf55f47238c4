"""answers_panel: the bars are the answers of results.json, before and after, and nothing else."""

import dataclasses
import json

import pytest

from qs.evaluation.heldout import AnswerScore, HeldoutScore
from qs.evaluation.tokens import NllScore
from qs.studies.answers_panel import draw_answers, read_answers

TEXT = NllScore(tokens=9, nll_base=1.0)
BEFORE = AnswerScore("all", 30, gold_base=0.15, gold_base_interval=0.02, nll_base=2.3)
AFTER = dataclasses.replace(BEFORE, gold_mix=0.9, gold_mix_interval=None)


def write(run, before, after):
    def stored(answers):
        return dataclasses.asdict(HeldoutScore(TEXT, TEXT, (*answers,)))

    written = {"before": before and stored(before), "after": stored(after)}
    (run / "results.json").write_text(json.dumps(written))


def heights(answers):
    """Heights of all bars without thoughts, then of those with, in a panel beside two others."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    draw_answers(figure.subplots(2, 1), answers, ("grey", "blue"), "pauses")
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    named = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert named == ["without pauses", "with"][: len(named)]
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == list(answers)
    return [bar.get_height() for bar in figure.axes[2].patches]


def test_answers_of_all_kinds_are_read_where_there_are_some(tmp_path):
    assert read_answers(tmp_path) == {}
    after = dataclasses.replace(BEFORE, gold_base=0.9)
    write(tmp_path, [BEFORE, dataclasses.replace(after, kind="sum")], [after])
    assert read_answers(tmp_path) == {"before": BEFORE, "after": after}
    write(tmp_path, None, [])
    assert read_answers(tmp_path) == {}


def test_bars_are_the_gold_answer_probabilities_without_and_with_thoughts():
    before = dataclasses.replace(BEFORE, gold_mix=0.16, gold_mix_interval=0.02)
    assert heights({"before": before, "after": AFTER}) == [0.15, 0.15, 0.16, 0.9]
    assert heights({"before": BEFORE, "after": BEFORE}) == [0.15, 0.15]


def test_damaged_results_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"after": {"text": 1}}')
    with pytest.raises(ValueError, match=r"results\.json: expected the scores of a run; move it"):
        read_answers(tmp_path)
