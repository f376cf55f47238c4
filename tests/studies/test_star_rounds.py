"""star_rounds: runs of STaR are grouped into arms, tabulated and drawn."""

import dataclasses

import numpy as np
import pytest

from qs import files
from qs.config import Config, RunConfig, StarConfig
from qs.studies import plots
from qs.studies.plots import draw_rounds
from qs.studies.star_rounds import arm_table, read_arms

SEEDS = {0: (0.5, 0.25, 1.0), 1: (0.5, 0.75, 0.5)}  # of the group "2 digits", by round


def finished(out, seed, rounds=2, **star):
    run = RunConfig(objective="star", seed=seed, out=str(out))
    config = Config(run=run, star=StarConfig(rounds=rounds, **star))
    folder = files.new_run(out, "star", config)
    log = files.JsonLines(folder / files.LOG)
    log.append([{"device": "CPU"}])
    for number, share in enumerate(SEEDS[seed][: rounds + 1]):
        record = {"round": number, "accuracy": {"1 digits": 1.0, "2 digits": share, "all": share}}
        if number:
            record |= {"kept": 10 * number + seed, "steps": 40, "training_seconds": 30.0}
        log.append([record])
    return folder


def test_runs_that_differ_in_seed_alone_are_one_arm(tmp_path):
    runs = [finished(tmp_path, 0), finished(tmp_path, 0, rationalize=False), finished(tmp_path, 1)]
    with_hints, without = read_arms(runs)
    assert with_hints.seeds == (0, 1)
    assert with_hints.groups == ("1 digits", "2 digits", "all")
    assert np.array_equal(with_hints.accuracy[:, :, 1], [SEEDS[0], SEEDS[1]])
    assert with_hints.name == "STaR, with rationalisation"
    assert (without.name, without.seeds) == ("STaR, without rationalisation", (0,))
    (answers,) = read_arms([finished(tmp_path, 1, learn="answers")])
    assert answers.name == "answers alone"


def test_arms_are_told_apart_by_the_settings_in_which_they_differ(tmp_path):
    def names(*settings):
        return [arm.name for arm in read_arms([finished(tmp_path, 0, **each) for each in settings])]

    words = "STaR, with rationalisation"
    assert names({}, {"shots": 4}) == [f"{words} --shots=10", f"{words} --shots=4"]
    assert names({}, {"growth": 1.0, "rationalize": False}, {"growth": 1.0, "shots": 4}) == [
        f"{words} --growth=1.2 --shots=10",
        "STaR, without rationalisation --growth=1.0 --shots=10",
        f"{words} --growth=1.0 --shots=4",
    ]
    answers = {"learn": "answers", "rationale_temperature": 0.7}
    assert names({}, {"rationalize": False}, answers) == [
        *(words, "STaR, without rationalisation", "answers alone")
    ]
    assert names({"task": "gsm8k"}, {"task": "gsm8k", "questions": "x"}, {}) == [
        *(f"{words} --task=gsm8k --questions=data", f"{words} --task=gsm8k --questions=x"),
        f"{words} --task=arithmetic",
    ]


def test_settings_that_change_no_round_make_no_arm(tmp_path):
    runs = [finished(tmp_path, 0), finished(tmp_path, 1)]
    config = files.read_config(runs[0]).changed(keep=0, eval_rows=3, thoughts=2)
    files.write_json(runs[0] / files.CONFIG, config.to_json())
    (runs[0] / "digests.json").unlink()  # as older runs are
    (arm,) = read_arms(runs)
    assert (arm.seeds, arm.name) == ((0, 1), "STaR, with rationalisation")


def test_the_table_has_means_and_the_range_of_seeds(tmp_path):
    (arm,) = read_arms([finished(tmp_path, 0), finished(tmp_path, 1)])
    table = arm_table(arm)
    assert table.notes == ["seeds 0, 1; 1.0 minutes a run"]
    assert table.heads[4:] == ("1 digits", "2 digits", "all")
    assert table.rows[0][:2] == ("0", "-")
    assert table.rows[1][1:4] == ("10", "-", "40")
    assert table.rows[2][5] == "75.0 (50 to 100)"
    (alone,) = read_arms([finished(tmp_path, 0)])
    assert arm_table(alone).rows[1][5] == "25.0"


@pytest.mark.parametrize("wrong", ["unfinished", "no star", "twice"])
def test_what_cannot_be_compared_is_refused(tmp_path, wrong):
    runs, found = [finished(tmp_path, 0)], r"expected a finished run .* found star and 1 rounds"
    if wrong == "unfinished":
        runs = [finished(tmp_path, 0)]
        config = files.read_config(runs[0])
        more = dataclasses.replace(config, star=dataclasses.replace(config.star, rounds=3))
        files.write_json(runs[0] / files.CONFIG, more.to_json())
        (runs[0] / "digests.json").unlink()  # as older runs are
        found = r"expected a finished run .* found star and 2 rounds"
    elif wrong == "no star":
        runs = [files.new_run(tmp_path, "plain", Config(run=RunConfig(objective="plain")))]
        found = "expected a finished run .* found plain"
    else:
        runs, found = runs * 2, r"different seeds, found \(0, 0\)"
    with pytest.raises(ValueError, match=found):
        read_arms(runs)


def test_a_picture_has_a_panel_for_each_arm_and_a_line_for_each_group(tmp_path):
    pytest.importorskip("matplotlib")
    arms = read_arms([finished(tmp_path, 0), finished(tmp_path, 1, rationalize=False)])
    png, svg = draw_rounds(arms, tmp_path / "plots")
    assert png.name == "rounds.png"
    assert svg.stat().st_size > 1000
    assert svg.read_bytes() == draw_rounds(arms, tmp_path / "again")[1].read_bytes()


def test_the_titles_of_a_picture_are_within_it(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    draw, figures = plots._draw_rounds, []

    def drawn(figure, arms):
        draw(figure, arms)
        figures.append(figure)

    monkeypatch.setattr(plots, "_draw_rounds", drawn)
    other = {"growth": 1.0, "rationale_tokens": 9, "shots": 4, "questions": "far/" * 40}
    runs = [finished(tmp_path, 0, task="gsm8k", **each) for each in ({}, other)]
    draw_rounds(read_arms(runs), tmp_path / "plots")
    (figure,) = figures
    figure.draw_without_rendering()
    titles = [ax._left_title.get_window_extent() for ax in figure.axes]
    assert all(box.width > 0 and box.x1 < figure.bbox.x1 for box in titles)
    assert titles[0].y1 < figure.bbox.y1
    assert titles[1].y1 < figure.axes[0].get_window_extent().y0
