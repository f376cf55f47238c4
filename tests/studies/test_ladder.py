"""ladder: each row is what its settings say, trained once, at equal steps and at equal cost."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from tiny import make, make_world, run

import evaluate
from qs import files
from qs.model.config import read_model_config
from qs.presets import PRESETS
from qs.studies.control_runs import run_of
from qs.studies.ladder import (
    OPERATIONS,
    RUNGS,
    SAME_COST,
    STEPS,
    read_ladder,
    rung_config,
    rung_list,
    step_operations,
    trainings,
)
from qs.studies.plots import draw_run

FLAGS = ["--steps=4", "--batch=2", "--seq=32", "--eval-rows=4", "--thoughts=3", "--samples=2"]
FLAGS += ["--seed=3", "--lr=1e-2", "--mixer-lr=0.1", "--warmup=0"]  # so that every step shows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    world, out = make_world(tmp_path_factory.mktemp("world")), tmp_path_factory.mktemp("out")
    flags = [f"--data={world.data}", f"--weights={world.weights}", f"--out={out}", "--preset=tiny"]
    return run(out, [*flags, *FLAGS])


def test_the_walk_begins_with_the_run_and_ends_with_rlp():
    own = PRESETS["tiny"]
    configs = {rung.key: rung_config(rung, own) for rung in RUNGS}
    assert configs["quiet"] == own
    assert configs["rlp"] == PRESETS["rlp"]
    walk = [dataclasses.asdict(c.thought) for c in list(configs.values())[:6]]
    for before, after in zip(walk, walk[1:], strict=False):
        assert before != after
        kept = [name for name in before if walk[0][name] != before[name]]
        assert all(before[name] == after[name] for name in kept)  # nothing is taken back
    assert configs["fast"].run.curriculum == "5-1,4-1,3-1,0"


def test_trainings_cost_as_many_steps_or_as_many_operations_as_the_run(trained):
    rows = trainings(trained, RUNGS, 2)
    shape = read_model_config(files.newest_step(trained))
    own = files.read_config(trained)
    whole = step_operations(own, shape) * own.run.steps
    out = {}
    for rung in RUNGS:
        steps, cost = ([job.config for job in rows[table][rung]] for table in (STEPS, OPERATIONS))
        assert {config.run.steps for config in steps} == {4}
        assert (
            [config.run.seed for config in steps] == [config.run.seed for config in cost] == [3, 4]
        )
        each = step_operations(cost[0], shape)
        assert abs(each * cost[0].run.steps - whole) <= max(each / 2, SAME_COST * whole)
        out |= {config.run.out: config for config in steps + cost}
    same = [rung.key for rung in RUNGS if rows[STEPS][rung] == rows[OPERATIONS][rung]]
    assert same == ["quiet", "others", "average", "alone", "reinforce", *same[5:]]
    assert not {"rlp", "plain", "pause"} & set(same)
    assert len(out) == 2 * (2 * len(RUNGS) - len(same))


def test_every_stage_of_a_curriculum_keeps_a_step_where_a_row_costs_more(trained, tmp_path):
    config = files.read_config(trained).changed(curriculum="3-1,2-1,1-1,0")
    run, (rung,) = files.new_run(tmp_path, "run", config), rung_list("rlp")
    assert trainings(run, [rung], 1)[OPERATIONS][rung][0].config.run.steps == 4


def test_rows_are_trained_once_and_told_seed_by_seed(trained, capsys):
    command = ["ladder", str(trained), "--seeds=2", "--jobs=2", "--only=plain,quiet"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    told = r"5 of 5 trainings to be done, 2 at a time: if each takes the \S+ minutes of the run's "
    told += r"own steps for as many floating-point operations, \d+ minutes"
    assert re.match(told, printed)
    rungs = rung_list("plain,quiet")
    assert [rung.key for rung in rungs] == ["quiet", "plain"]
    rows = trainings(trained, rungs, 2)
    made = [run_of(job) for row in rows.values() for jobs in row.values() for job in jobs[1:]]
    stamps = {path: (path / "results.json").stat().st_mtime_ns for path in made}
    tables = json.loads((trained / "ladder.json").read_text())["tables"]
    for title, lines in tables.items():
        assert [line["title"] for line in lines] == [rung.title for rung in rungs], title
        assert all(len(line["gold"]) == 2 for line in lines)
        assert lines[1]["useful"] == [None, None]
        assert lines[1]["gold"] == lines[1]["off"]
    after = files.read_results(trained)["after"]["answers"][-1]
    assert tables[STEPS][0]["gold"][0] == after["gold_mix"]
    assert tables[STEPS][0]["off"][0] == after["gold_base"]
    assert tables[OPERATIONS][1]["steps"] > tables[STEPS][1]["steps"]
    drawn = {path.name for path in draw_run(trained, [])}
    assert {"ladder.png", "ladder.svg"} <= drawn
    shown = (trained / "plots" / "ladder.svg").read_text()
    assert all(rung.title.split(",")[0] in shown for rung in rungs)
    page = (trained / "ladder.md").read_text()
    assert f"python evaluate.py {' '.join(command)}\n" in page
    assert "| plain training | 2 | 4 |" in page
    assert evaluate.main(command) == 0  # nothing is trained again
    assert capsys.readouterr().out.startswith("nothing has to be trained\n")
    assert stamps == {path: (path / "results.json").stat().st_mtime_ns for path in made}
    assert evaluate.main(["ladder", str(trained), "--only=quiet"]) == 0  # fewer rows and seeds
    assert json.loads((trained / "ladder.json").read_text())["tables"] == tables
    config = run_of(rows[STEPS][rungs[1]][0]) / "config.json"
    stored = config.read_text()
    config.write_text(stored.replace('"plain"', '"pause"'))
    (config.parent / "digests.json").unlink(missing_ok=True)
    capsys.readouterr()
    assert evaluate.main(["ladder", str(trained), "--only=quiet"]) == 2  # they are checked, too
    assert "with --objective=plain, found --objective=pause; move " in capsys.readouterr().err
    config.write_text(stored)


def test_text_without_known_answers_is_refused_before_anything_is_trained(tmp_path, capsys):
    own, out = make(tmp_path / "own"), tmp_path / "out"
    trained = run(out, own.flags(out, "--steps=1"))
    assert evaluate.main(["ladder", str(trained), "--only=plain"]) == 2
    assert "expected scores of answers before and after training; this" in capsys.readouterr().err
    assert not (trained / "ladder").exists()


def test_what_is_no_row_or_no_run_is_refused(trained, tmp_path, capsys):
    assert evaluate.main(["ladder", str(trained), "--only=plain,colour"]) == 2
    assert "expected some of quiet,others,average," in capsys.readouterr().err
    (tmp_path / "ladder.json").write_text('{"tables": {}}')
    with pytest.raises(ValueError, match="ladder.json: expected the tables of a ladder, found"):
        read_ladder(tmp_path)
    with pytest.raises(ValueError, match="ladder needs a run trained with --objective quiet and"):
        trainings(trained, RUNGS, 0)
