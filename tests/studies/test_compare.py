"""compare: what models know alone, with thoughts and in writing, and what they cost."""

import numpy as np
import pytest
import tiny
import torch
from tiny import ROOT

import evaluate
from qs import files
from qs.config import Config, OptimConfig, RunConfig, StarConfig, ThoughtConfig
from qs.inference.write import write
from qs.model import __main__ as main
from qs.presets import ONE_THOUGHT
from qs.quietstar.load import open_model
from qs.studies.compare import Answers, Cost, compare_models, decoded_answers, training_cost


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def saved(run, number, **state):
    """A checkpoint that says where its run stood, and nothing else."""
    folder = run / f"step_{number:06d}"
    folder.mkdir()
    files.write_json(folder / files.TRAINER, state)
    return folder


def test_the_cost_of_a_run_until_a_checkpoint_is_counted_in_tokens(tmp_path):
    run = RunConfig(steps=3, batch=4, seq=10)
    quiet = Config(ThoughtConfig(thoughts=5, samples=2), OptimConfig(), run)
    pause = Config(quiet.thought, OptimConfig(), RunConfig("pause", steps=3, batch=4, seq=10))
    for name, config, generated in (("quiet", quiet, 120 * 2 * 5), ("pause", pause, 0)):
        folder = files.new_run(tmp_path, name, config)
        for step in (1, 3):
            cost = training_cost(saved(folder, step, step=step, epoch=0))
            assert cost == Cost(step * 40, step * generated // 3)


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_every_stage_of_a_curriculum_costs_its_own_thoughts(tmp_path, distil):
    run = RunConfig(curriculum="3-1,2-1,1-1,0", steps=8, batch=2, seq=64, distil=distil)
    config = Config(ThoughtConfig(thoughts=3, ahead=1, samples=4), OptimConfig(), run)
    folder = files.new_run(tmp_path, "fast", config)
    teacher = 1 if distil else 0  # one thought of one token
    lengths = [3 * 4, 3 * 4, 2 * 4, 2 * 4, 1 * 4, 1 * 4, teacher, teacher]
    for step in range(9):
        cost = training_cost(saved(folder, step, step=step))
        assert cost == Cost(step * 128, 128 * sum(lengths[:step]))


def test_the_cost_of_star_is_of_all_rounds_until_a_checkpoint_logged_or_not(tmp_path, capsys):
    star = Config(run=RunConfig(objective="star"), star=StarConfig(rounds=3))
    folder = files.new_run(tmp_path, "star", star)
    log = files.JsonLines(folder / files.LOG)
    for number in range(3):
        tokens = {"trained_tokens": 7, "generated_tokens": 11} if number else {}
        log.append([{"round": number, "accuracy": {"all": 0.5}} | tokens])
    two = saved(folder, 2, round=2, trained_tokens=7, generated_tokens=11)
    three = saved(folder, 3, round=3, trained_tokens=5, generated_tokens=None)
    assert training_cost(two) == Cost(14, 22)
    assert training_cost(three) == Cost(19, 22)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "state", [{}, {"step": "2"}, {"step": 9}, {"step": -1}, {"step": 1, "epoch": "x"}]
)
def test_a_checkpoint_that_does_not_say_where_its_run_stood_is_refused(tmp_path, state):
    folder = files.new_run(tmp_path, "run", Config(run=RunConfig(steps=3)))
    with pytest.raises(ValueError, match="trainer.json: expected numbers, and a step from 0 to 3"):
        training_cost(saved(folder, 1, **state))


def test_every_model_is_there_before_the_first_is_asked(monkeypatch):
    monkeypatch.setattr("qs.studies.compare.open_model", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ValueError, match="nosuch: expected a checkpoint, found no such folder"):
        compare_models(["sums", "nosuch"], "arithmetic", 2, "cpu")


def test_the_bundled_model_of_sums_knows_short_ones_in_writing_only():
    opened = open_model("sums", **ONE_THOUGHT, device="cpu", seq=2)
    written = decoded_answers(opened, "arithmetic", 6, written=True, think=False)
    right = written.right.reshape(-1)
    assert len(right) >= 25
    assert right[:6].mean() > 0.8  # sums of one digit come first
    assert right[-12:].mean() < 0.2  # and those of four and five last
    alone = decoded_answers(opened, "arithmetic", 6, written=False, think=False)
    assert alone.right.mean() < 0.2
    assert written.tokens > alone.tokens


def test_a_table_has_a_row_for_each_model_and_says_what_was_measured():
    table = compare_models(["tiny"], "world", 4, "cpu")
    assert table.title == "world: 4 problems answered in writing"
    assert len(table.rows) == 1
    assert table.rows[0][:3] == ("tiny (no run)", "-", "-")
    assert table.rows[0][4] == "-"  # it does not think
    assert table.rows[0][3].startswith("15.")
    with pytest.raises(ValueError, match="sums: .*--on world asks about, found another one; leave"):
        compare_models(["sums"], "world", 2, "cpu")


def test_a_checkpoint_that_is_not_the_newest_is_named_and_costs_what_was_done_until_then(
    tmp_path, monkeypatch
):
    made = tiny.make(tmp_path / "made", positions=128)
    run = tiny.run(tmp_path / "runs", made.flags(tmp_path / "runs", "--save-every=3"))
    asked = Answers(np.ones(4), 3.0)
    monkeypatch.setattr("qs.studies.compare.decoded_answers", lambda *_, **__: asked)
    models = [str(run / "step_000003"), str(run), str(run / "step_000006")]
    half, whole, same = compare_models(models, "arithmetic", 4, "cpu").rows
    rows = 3 * 4 * 16
    name = f"quiet, seed 0 ({run.name}"
    assert half[:3] == (f"{name}/step_000003)", f"{rows}", f"{rows * 2 * 2}")
    assert whole[:3] == same[:3] == (f"{name})", f"{rows * 2}", f"{2 * rows * 2 * 2:,}")


def test_an_exported_model_is_asked_with_its_thoughts_as_the_run_that_it_holds(tmp_path):
    made = tiny.make(tmp_path / "made", positions=128)
    run = tiny.run(tmp_path / "runs", made.flags(tmp_path / "runs", "--steps=2"))
    out = str(tmp_path / "released")
    assert main.main(["export", str(run), "--layout=quietstar", f"--out={out}"]) == 0
    whole, released = compare_models([str(run), out], "arithmetic", 2, "cpu").rows
    assert released[:3] == ("released (no run)", "-", "-")
    assert released[3:] == whole[3:]
    assert released[4] != "-"


@pytest.mark.parametrize("flag", ["--end=drawn", "--objective=pause"])
def test_tokens_are_those_that_were_drawn_before_a_thoughts_end_and_no_pauses(
    tmp_path, monkeypatch, flag
):
    made, counts = tiny.make(tmp_path / "made", positions=128), []
    run = tiny.run(tmp_path / "runs", made.flags(tmp_path / "runs", "--steps=2", flag))
    opened = open_model(str(run), **ONE_THOUGHT, device="cpu", seq=2)
    if flag == "--end=drawn":
        with torch.no_grad():  # thoughts end before n tokens
            opened.quiet.end_output.copy_(3 * opened.quiet.model.head[:9].sum(0))

    def counted(*arguments, **options):
        results = write(*arguments, **options)
        for result in results:
            thoughts = [i for token in result.tokens for i in token.thought]
            drawn = 0 if opened.quiet.pause else len(thoughts)
            counts.append((len(result.tokens), drawn, len(thoughts)))
        return results

    monkeypatch.setattr("qs.star.round.write", counted)
    found = decoded_answers(opened, "arithmetic", 2, written=False, think=True)
    tokens, drawn, places = map(sum, zip(*counts, strict=True))
    assert found.tokens == pytest.approx((tokens + drawn) / len(found.right))
    assert places == 2 * tokens if opened.quiet.pause else places < 2 * tokens


def test_known_answers_after_pauses_cost_one_token(tmp_path):
    flags = ["--objective=pause", "--steps=1", "--batch=2", "--eval-rows=1", "--device=cpu"]
    run = tiny.run(tmp_path, [*flags, f"--out={tmp_path}"])
    (row,) = compare_models([str(run)], "world", 2, "cpu").rows
    assert row[3].endswith("(1)")
    assert row[4].endswith("(1)")


def test_a_table_says_what_was_asked_what_was_left_out_and_whether_tokenizers_differ(monkeypatch):
    def decoded(opened, task, count, written, think):
        return Answers(np.ones(37), 3.0)  # as many of 5 x 8 sums differ

    monkeypatch.setattr("qs.studies.compare.decoded_answers", decoded)
    same = compare_models(["sums", "sums"], "arithmetic", 8, "cpu").notes
    assert "40 sums drawn, 8 of each length; 3 came again, left out" in same
    assert "of rates: both ends of Wilson's 95 % interval" in same
    assert not any("different tokenizers" in note for note in same)
    notes = compare_models(["sums", "tiny"], "arithmetic", 8, "cpu").notes
    assert notes[-1].startswith("these models have different tokenizers")


def test_answers_read_as_their_mean_with_its_interval_and_the_tokens():
    assert str(Answers(np.array([0.25, 0.75]), 7.6)) == "50.0 ± 317.7 (8)"


def test_right_and_wrong_answers_read_as_a_rate_with_both_ends_of_its_interval():
    assert str(Answers(np.array([1.0, 0.0, 1.0, 0.0]), 7.6)) == "50.0, 15.0 to 85.0 (8)"
    assert str(Answers(np.zeros(10), 12)) == "0.0, 0.0 to 27.8 (12)"
    assert str(Answers(np.ones(10), 12)) == "100.0, 72.2 to 100.0 (12)"


def test_the_commands_print_and_write_their_tables(tmp_path, capsys):
    page = tmp_path / "page.md"
    flags = ["compare", "tiny", "--problems", "2", "--markdown", str(page), "--device", "cpu"]
    assert evaluate.main(flags) == 0
    assert "tiny (no run)" in capsys.readouterr().out
    assert "| tiny (no run) |" in page.read_text()
    assert evaluate.main(["rounds", str(tmp_path)]) == 2
    assert f"{tmp_path}: expected the folder of a run, found" in capsys.readouterr().err
