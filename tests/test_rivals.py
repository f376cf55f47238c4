"""rivals: everything a run is compared with is trained once, and measured as it was trained."""

import json

import pytest
from tiny import ROOT, make, make_world, run

import evaluate
from qs import checkpoint
from qs.controls import OWN, REPLACED
from qs.controls import rivals as all_rivals
from qs.rivals import LENGTH, SAME, TRAINED, compare, jobs, run_in, train_all

FLAGS = ["--steps=2", "--batch=2", "--seq=32", "--eval-rows=4", "--thoughts=2", "--samples=2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    flags = [f"--data={world.data}", f"--weights={world.weights}", f"--out={out}", "--preset=tiny"]
    return run(out, [*flags, *FLAGS])


def test_every_seed_trains_the_same_rivals_in_folders_of_their_own(trained):
    found = jobs(trained, 3)
    assert len({job.out for job in found}) == len(found)
    names = {seed: [j.rival.name for j in found if j.seed == seed] for seed in (0, 1, 2)}
    assert names[1] == names[2] == [OWN, *names[0]]
    assert all(job.out.is_relative_to(trained) for job in found)
    assert all(job.rival.config.run.eval_rows == 0 for job in found)


def test_controls_train_what_is_missing_and_write_the_tables(trained, tmp_path, monkeypatch):
    kept = ["plain training", "pause tokens", "n = 0"]
    monkeypatch.setattr(
        "qs.rivals.rivals", lambda config: [r for r in all_rivals(config) if r.name in kept]
    )
    monkeypatch.setattr("qs.rivals.LENGTHS", (0, 3))
    page = tmp_path / "controls.md"
    command = ["--controls", str(trained), "--jobs=2", "--rows=4", f"--markdown={page}"]
    assert evaluate.main(command) == 0
    made = {job.out: run_in(job.out) for job in jobs(trained, 1)}
    stamps = {path: (path / "results.json").stat().st_mtime_ns for path in made.values()}
    found = json.loads((trained / "controls.json").read_text())["tables"]
    assert [line["name"] for line in found[SAME]] == [replaced.name for replaced in REPLACED]
    assert [line["name"] for line in found[LENGTH]] == ["n = 0", "n = 2", "n = 3"]
    assert [line["name"] for line in found[TRAINED]] == [OWN, *kept]
    assert found[SAME][0]["gold"] != found[SAME][1]["gold"]
    assert found[TRAINED][1]["useful"] is None
    for name in kept:
        assert f"| {name} |" in page.read_text()
    assert evaluate.main(command) == 0  # nothing is trained again
    assert stamps == {path: (path / "results.json").stat().st_mtime_ns for path in made.values()}


def test_a_rival_is_trained_with_the_runs_data_steps_and_seed(trained, monkeypatch):
    (job,) = [j for j in jobs(trained, 2) if j.rival.name == "plain training" and j.seed == 1]
    train_all([job], ROOT / "train.py", 1)
    config = checkpoint.read_config(run_in(job.out))
    own = checkpoint.read_config(trained)
    assert (config.run.objective, config.run.seed) == ("plain", 1)
    for name in ("data", "weights", "steps", "batch", "seq"):
        assert getattr(config.run, name) == getattr(own.run, name)
    assert config.optim == own.optim
    assert config.thought == own.thought


def test_a_failed_training_is_one_line(trained, monkeypatch, tmp_path):
    job = jobs(trained, 1)[0]._replace(out=tmp_path / "out")
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit('error: no luck')\n")
    with pytest.raises(ValueError, match=r"training .*, seed 0, failed: error: no luck"):
        train_all([job], script, 1)


def test_text_without_answers_and_runs_that_do_not_think_are_refused(tmp_path):
    tiny = make(tmp_path / "tiny")
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--start-text=plus", "--steps=1"))
    with pytest.raises(ValueError, match=r"expected world.json, which says where the answers are"):
        compare(found, 1, 4)
    plain = run(tmp_path / "plain", tiny.flags(tmp_path / "plain", "--objective=plain"))
    with pytest.raises(ValueError, match="needs a run trained with --objective quiet"):
        jobs(plain, 1)
