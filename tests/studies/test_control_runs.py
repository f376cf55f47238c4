"""control_runs: all that a run is compared with is trained once, and measured as it was trained."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny import ROOT, make, make_world, run

import evaluate
from qs import files
from qs.model.tokenizer import Tokenizer
from qs.studies.control_runs import (
    check_jobs,
    controls_missing,
    run_of,
    text_with_answers,
    time_told,
    train_all,
    trained_by,
    training_jobs,
)
from qs.studies.controls import (
    INTERVENTIONS,
    LENGTH,
    OWN,
    SAME,
    TRAINED,
    UNREWARDED,
    UNTRAINED,
    BaselineRun,
    Control,
    Selection,
    baselines,
)
from qs.studies.ladder import STEPS, rung_list, trainings

FLAGS = ["--steps=2", "--batch=2", "--seq=32", "--eval-rows=4", "--thoughts=2", "--samples=2"]
FLAGS += ["--seed=3", "--lr=1e-2", "--mixer-lr=0.1", "--warmup=0"]  # so that every step shows
SEED = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    flags = [f"--data={world.data}", f"--weights={world.weights}", f"--out={out}", "--preset=tiny"]
    return run(out, [*flags, *FLAGS])


def test_controls_are_missing_only_where_they_can_be_made(trained, tmp_path):
    assert controls_missing(trained)
    for objective, answers in (("quiet", 0), ("plain", 1)):
        config = files.read_config(trained).changed(objective=objective)
        run = files.new_run(tmp_path, objective, config)
        assert not controls_missing(run)  # not finished
        after = files.read_results(trained)["after"]
        after["answers"] = after["answers"][:answers]
        files.add_results(run, {"before": None, "after": after})
        assert not controls_missing(run)


def test_every_seed_trains_the_same_baselines_in_folders_of_their_own(trained):
    jobs = training_jobs(trained, 3)
    assert len({job.config.run.out for job in jobs}) == len(jobs)
    names = {seed: [j.name for j in jobs if j.config.run.seed == seed] for seed in (3, 4, 5)}
    assert names[4] == names[5] == [OWN, *names[3]]
    assert all(Path(job.config.run.out).is_relative_to(trained) for job in jobs)
    assert all(job.config.run.eval_rows == 0 for job in jobs)


def test_controls_train_what_is_missing_and_write_the_tables(
    trained, tmp_path, monkeypatch, capsys
):
    kept = ["plain training", "pause tokens", UNREWARDED, "m = 4", "n = 0"]
    monkeypatch.setattr(
        "qs.studies.controls.baselines",
        lambda config, _: [baseline for baseline in baselines(config) if baseline.name in kept],
    )
    monkeypatch.setattr("qs.studies.controls.EVALUATED", (0, 3))
    page = tmp_path / "controls.md"
    command = ["controls", str(trained), "--jobs=2", "--rows=4", f"--markdown={page}"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.index("5 of 5 trainings to be done, 2 at a time") < printed.index("# Controls")
    assert f"python evaluate.py {' '.join(command)}\n" in page.read_text()
    made = [run_of(job) for job in training_jobs(trained, 1)]
    stamps = {path: (path / "results.json").stat().st_mtime_ns for path in made}
    written = json.loads((trained / "controls.json").read_text())
    assert written["trained"] == trained_by([trained, *made])
    tables = written["tables"]
    assert [line["name"] for line in tables[SAME]] == [i.name for i in INTERVENTIONS]
    assert [line["name"] for line in tables[LENGTH]] == ["n = 0", "n = 2", "n = 3"]
    assert [line["name"] for line in tables[TRAINED]] == [UNTRAINED, OWN, *kept]
    assert tables[SAME][0]["gold"] != tables[SAME][1]["gold"]
    rows = {line["name"]: line for line in tables[TRAINED]}
    assert rows["plain training"]["useful"] is None
    agrees_with_the_runs_own_table(trained, rows)
    for name, line in rows.items():  # differences are those of the means
        mean, half = line["gold_change"] or (None, 0)
        if name != UNTRAINED:
            assert mean == pytest.approx(line["gold"][0] - rows[UNTRAINED]["gold"][0])
            assert 0 < half < 2
            change = line["other"][0] - rows[UNTRAINED]["other"][0]
            assert line["other_change"][0] == pytest.approx(change)
        if name not in (UNTRAINED, UNREWARDED):
            change = line["gold"][0] - rows[UNREWARDED]["gold"][0]
            assert line["gold_unrewarded"][0] == pytest.approx(change)
    assert (rows[OWN]["rewarded"], rows["m = 4"]["rewarded"]) == (1, 0)
    assert rows[UNREWARDED]["rewarded"] is rows["n = 0"]["rewarded"] is None
    assert "| m = 4 (100 % of the answers earn no reward) |" in page.read_text()
    for name in set(kept) - {"m = 4"}:
        assert f"| {name} |" in page.read_text()
    assert evaluate.main(command) == 0  # nothing is trained again
    assert stamps == {path: (path / "results.json").stat().st_mtime_ns for path in made}


def test_the_cheap_form_trains_nothing_and_keeps_other_results(copied, capsys, monkeypatch):
    files.write_json(copied / "controls.json", {})
    monkeypatch.setattr("evaluate.TRAIN", copied / "missing.py")
    command = ["controls", str(copied), "--rows=2", "--arms=none", "--lengths=3,0"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("nothing has to be trained; then ")
    written = json.loads((copied / "controls-none-lengths-0-3.json").read_text())["tables"]
    assert [line["name"] for line in written[SAME]] == [i.name for i in INTERVENTIONS]
    assert [line["name"] for line in written[LENGTH]] == ["n = 0", "n = 2", "n = 3"]
    assert [line["name"] for line in written[TRAINED]] == [UNTRAINED, OWN]
    assert f"written to {copied / 'controls-none-lengths-0-3.md'}" in printed
    assert json.loads((copied / "controls.json").read_text()) == {}


def test_time_is_told_from_the_runs_own_log(copied, monkeypatch):
    log = [{"tokens_per_second": 2 * 32 / 300}] * 2  # 2 steps of 300 s
    monkeypatch.setattr(files, "read_log", lambda run: log)
    jobs = training_jobs(copied, 1, Selection(("plain", "pause", "no-reinforce"), (0,)))
    assert [run_of(job) is None for job in jobs] == [False, True, True]
    row = Control(OWN, (copied,) * 2, (files.read_config(copied),) * 2)
    told = time_told(copied, jobs, {"a": [row], "b": [row]}, 4, 1)
    assert told.startswith("2 of 3 trainings to be done, 1 at a time: if each takes the 10.0 min")
    assert "own steps, 20 minutes; then 2 measurements, at most 20.0 minutes" in told


def agrees_with_the_runs_own_table(trained, rows):
    """Every figure that the controls and train.py both tell is the same to the last digit."""
    results = json.loads((trained / "results.json").read_text())
    for name, when in ((UNTRAINED, "before"), (OWN, "after")):
        answers, row = results[when]["answers"][-1], rows[name]
        assert row["gold"][0] == pytest.approx(answers["gold_mix"], rel=1e-9), name
        for ours, theirs in (("nll", "nll_mix"), ("weight", "weight")):
            assert row[ours] == pytest.approx(answers[theirs], rel=1e-9), (name, ours)
        assert row["useful"] == answers["useful"]
        assert row["other"][0] == pytest.approx(results[when]["other"]["nll_mix"], rel=1e-9)


def test_a_baseline_is_trained_with_the_runs_data_steps_and_seed(trained):
    jobs = [job for job in training_jobs(trained, 2) if job.config.run.seed == 4]
    (job,) = [job for job in jobs if job.name == "plain training"]
    assert train_all([job], ROOT / "train.py", 1) == {job: run_of(job)}
    config = files.read_config(run_of(job))
    own = files.read_config(trained)
    assert (config.run.objective, config.run.seed) == ("plain", 4)
    for name in ("data", "weights", "steps", "batch", "seq"):
        assert getattr(config.run, name) == getattr(own.run, name)
    assert config.optim == own.optim
    assert config.thought == own.thought


def elsewhere(trained, tmp_path) -> BaselineRun:
    """A training whose folder is empty."""
    job = training_jobs(trained, 1)[0]
    return BaselineRun(job.name, job.config.changed(out=str(tmp_path / "out")))


def test_a_failed_training_is_one_line(trained, tmp_path):
    job = elsewhere(trained, tmp_path)
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit('error: no luck')\n")
    with pytest.raises(ValueError, match=r"training .*, seed 3, failed: error: no luck"):
        train_all([job], script, 1)


STOPPED = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path({notes!r}, "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({notes!r}, "began").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("when", ["trains", "is being started"])
def test_a_signal_to_the_command_alone_ends_its_trainings(trained, tmp_path, monkeypatch, when):
    jobs = [elsewhere(trained, tmp_path / name) for name in "abc"]
    script = tmp_path / "script.py"
    script.write_text(STOPPED.format(notes=str(tmp_path)))

    class Late(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if when == "is being started":
                while not interrupted:
                    time.sleep(0.01)
                time.sleep(0.5)  # for those that had started to be ended

    def interrupt(number, frame):
        if (tmp_path / "began").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted = []
    monkeypatch.setattr("qs.studies.control_runs.subprocess.Popen", Late)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            train_all(jobs, script, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 30
    assert (tmp_path / "stopped").exists()


def test_of_several_folders_of_a_training_the_furthest_is_taken(trained, tmp_path):
    job = elsewhere(trained, tmp_path)
    first = files.new_run(job.config.run.out, "20261025-021000", job.config)
    assert run_of(job) == first
    begun_later = files.new_run(job.config.run.out, "20261025-025900", job.config)
    assert run_of(job) == begun_later
    (first / "step_000001").mkdir()  # it was begun when the clock had been set back
    assert run_of(job) == first


def test_threads_that_a_person_chose_are_kept(trained, monkeypatch, tmp_path):
    job = elsewhere(trained, tmp_path)
    script = tmp_path / "fails.py"
    script.write_text("import os, sys\nsys.exit(f\"threads {os.environ['OMP_NUM_THREADS']}\")\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(ValueError, match="failed: threads 7"):
        train_all([job], script, 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with pytest.raises(ValueError, match="failed: threads 4"):
        train_all([job], script, 2)


@pytest.fixture
def copied(trained, tmp_path):
    """A run of its own, with one baseline that claims to be finished."""
    run = shutil.copytree(trained, tmp_path / trained.name)
    shutil.rmtree(run / "controls", ignore_errors=True)
    job = training_jobs(run, 1)[0]
    made = files.new_run(job.config.run.out, "made", job.config)
    shutil.copytree(run / "step_000002", made / "step_000002")
    return run


def refused(run, capsys, message, command="controls", *flags):
    def untouched():
        return sorted(str(path) for path in run.rglob("*"))

    before = untouched()
    capsys.readouterr()
    assert evaluate.main([command, str(run), *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert untouched() == before


def test_a_baseline_with_other_settings_is_refused_before_anything_is_trained(copied, capsys):
    job = training_jobs(copied, 1)[0]
    check_jobs(copied, [job])
    path = run_of(job) / "config.json"
    stored = json.loads(path.read_text())
    (path.parent / "digests.json").unlink()  # as older runs are
    stored["star"]["rounds"] = 3  # which changes nothing
    path.write_text(json.dumps(stored))
    check_jobs(copied, [job])
    stored["run"]["steps"] = 7
    stored["optim"]["lr"] = 0.5
    path.write_text(json.dumps(stored))
    refused(copied, capsys, "with --lr=0.01 --steps=2, found --lr=0.5 --steps=7; move ")


@pytest.mark.parametrize("command", ["controls", "ladder"])
def test_results_of_other_data_are_refused_before_anything_is_trained(copied, capsys, command):
    job, flags = training_jobs(copied, 1)[0], []
    if command == "ladder":
        (rung,), flags = rung_list("plain"), ["--only=plain"]
        job = trainings(copied, [rung], 1)[STEPS][rung][0]
        files.new_run(job.config.run.out, "made", job.config)
    made, out = run_of(job), job.config.run.out
    check_jobs(copied, [job])  # which does not say what it was trained on, as older ones
    for path, advice in ((made, f"or move {out} away"), (copied, "or train the run again")):
        files.write_json(path / "run.json", files.made_by(path) | {"data": "another"})
        message = f"expected the data that {path} was begun with, found other data of that name; "
        message += f"prepare it again from the same sources, {advice}"
        refused(copied, capsys, message, command, *flags)


def test_what_would_train_nothing_is_refused_before_anything_is_trained(copied):
    config = training_jobs(copied, 1)[1].config.changed(beta=0.0, likelihood_weight=0.0)
    with pytest.raises(ValueError, match="training a row, seed 3: --likelihood-weight 0 without"):
        check_jobs(copied, [BaselineRun("a row", config)])


def test_an_unfinished_run_is_refused_before_anything_is_trained(copied, capsys):
    (copied / "step_000002").rename(copied / "step_000001")
    refused(copied, capsys, f"finish it with python train.py --resume {copied}")


def test_results_of_question_sets_do_not_make_a_training_finished(copied):
    job = training_jobs(copied, 1)[0]
    found = run_of(job)
    assert files.finished(found)
    (found / "step_000002").rename(found / "step_000001")
    files.add_results(found, {"exams": {}})
    assert not files.finished(found)


def test_text_without_answers_and_runs_that_do_not_think_are_refused(tmp_path):
    tiny = make(tmp_path / "tiny")
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--start-text=plus", "--steps=1"))
    with pytest.raises(ValueError, match=r"expected world.json, which says where the answers"):
        text_with_answers(files.read_config(found).run, Tokenizer(files.newest_step(found)))
    assert evaluate.main(["controls", str(found)]) == 2
    assert not (found / "controls").exists()
    plain = run(tmp_path / "plain", tiny.flags(tmp_path / "plain", "--objective=plain"))
    with pytest.raises(ValueError, match="needs a run trained with --objective quiet"):
        training_jobs(plain, 1)


@pytest.mark.parametrize("command", ["controls", "ladder"])
def test_what_is_no_run_is_refused_and_no_folder_is_made_of_it(tmp_path, capsys, command):
    assert evaluate.main([command, str(tmp_path / "nope")]) == 2
    assert "expected the folder of a run, found no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
