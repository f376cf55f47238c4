"""checkpoint: what bears its final name is complete, and reads back as it was written."""

import json
import math

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import batch, module, same_bits

from qs.config import PRESETS, Config, OptimConfig, RunConfig, ThoughtConfig
from qs.files import (
    RESULTS,
    Log,
    add_results,
    finished,
    new_run,
    newest_step,
    read_config,
    read_json,
    save_step,
    saved_steps,
    write_json,
)
from qs.training import checkpoint
from qs.training.checkpoint import load_optimizer, optimizer_tensors, save_optimizer
from qs.training.step import make_optimizer, train_step

QUIET = Config(ThoughtConfig(thoughts=2, ahead=2), OptimConfig(lr=0.1), RunConfig(seq=7))


def names_of(quiet):
    return {parameter: name for name, parameter in quiet.named_parameters()}


def stepped(config=QUIET, steps=2):
    quiet = module(config.thought)
    optimizer = make_optimizer(quiet, config.optim)
    for step in range(steps):
        train_step(quiet, optimizer, *batch(step), config, step, False)
    return quiet, optimizer


# Settings and JSON


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_run_gives_back_its_settings(tmp_path, preset):
    run = new_run(tmp_path / "runs", "name", PRESETS[preset])
    assert read_config(run) == PRESETS[preset]
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_runs_of_one_name_have_folders_of_their_own(tmp_path):
    found = [new_run(tmp_path, "name", QUIET).name for _ in range(3)]
    assert found == ["name", "name-2", "name-3"]


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_runs_that_have_no_folder_to_go_to_are_refused(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="out"):
        new_run(out, "name", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config.json: no such file; is .* a run folder\?"),
        ("{", "config.json: expected JSON, found something damaged"),
        (b"\xff", "config.json: expected JSON, found something damaged"),
        ("null", r"config.json: expected the settings of a run.*is .* a run folder\?"),
        ("3", "config.json: expected the settings of a run"),
        ('{"model_type": "mistral"}', r"4 missing \(optim, run, star, thought\), 1 unexpected"),
        (json.dumps(QUIET.to_json()).replace('"seq": 7', '"seq": "7"'), "settings of a run"),
        (json.dumps(QUIET.to_json()).replace('"seq"', '"sequence"'), "1 missing .seq."),
        (json.dumps(QUIET.to_json()).replace('"seq": 7', '"seq": 1'), "--seq must be at least 2"),
    ],
)
def test_a_folder_without_sound_settings_is_no_run(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_an_interrupted_write_leaves_the_old_json(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "flush", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}


# Checkpoints


def fill(text):
    return lambda folder: [(folder / name).write_text(text) for name in ("a", "b")]


def test_results_are_added_to_what_is_there_and_a_run_is_finished_by_its_last_step(tmp_path):
    run = new_run(tmp_path, "run", PRESETS["tiny"])
    for found in ({"exams": {"a": 1}}, {"after": 2}, {"after": 3}):
        add_results(run, found)
    assert read_json(run / RESULTS) == {"exams": {"a": 1}, "after": 3}
    last = PRESETS["tiny"].run.steps
    for step in (1, last - 1, last):
        assert not finished(run)
        save_step(run, step, fill("x"))
    assert finished(run)


def test_an_interrupted_save_leaves_no_checkpoint_that_is_read(tmp_path):
    first = save_step(tmp_path, 2, fill("whole"))

    def interrupted(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_step(tmp_path, 4, interrupted)
    assert newest_step(tmp_path) == first
    assert saved_steps(tmp_path) == {2: first}
    # what was left over does not come into the next attempt
    again = save_step(tmp_path, 4, lambda folder: (folder / "b").write_text("whole"))
    assert newest_step(tmp_path) == again
    assert [path.name for path in again.iterdir()] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000004"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        assert not (tmp_path / "step_000001").exists() or path == tmp_path
        flushed.append(path.name)

    monkeypatch.setattr(checkpoint, "flush", flush)
    save_step(tmp_path, 1, fill("x"))
    assert sorted(flushed[:2]) == ["a", "b"]
    assert flushed[2:] == [".step_000001.tmp", tmp_path.name]


def test_a_step_saved_twice_keeps_the_complete_one(tmp_path):
    save_step(tmp_path, 3, fill("first"))
    assert save_step(tmp_path, 3, fill("second")) == tmp_path / "step_000003"
    assert (tmp_path / "step_000003" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_the_newest_step_is_the_highest_number_and_not_the_last_word(tmp_path):
    for name in ("step_999999", "step_1000000", "step_000004", ".step_2000000.tmp", "step_best"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path).name == "step_1000000"
    assert [*saved_steps(tmp_path)] == [4, 999999, 1000000]


def test_a_run_without_checkpoint_says_what_to_do(tmp_path):
    (tmp_path / ".step_000002.tmp").mkdir()
    with pytest.raises(
        ValueError, match=r"no checkpoint \(step_\*/\) to go on from; start .* again"
    ):
        newest_step(tmp_path)


# The optimiser


def test_an_optimiser_read_back_goes_on_bit_for_bit(tmp_path):
    quiet, optimizer = stepped()
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    other = module(QUIET.thought)
    other.load_state_dict(quiet.state_dict())
    again = make_optimizer(other, QUIET.optim)
    load_optimizer(tmp_path, again, names_of(other))
    for one, it in ((quiet, optimizer), (other, again)):
        train_step(one, it, *batch(9), QUIET, 9, False)
    same_bits(dict(quiet.named_parameters()), dict(other.named_parameters()))
    states = [
        optimizer_tensors(it, names_of(one)) for one, it in ((quiet, optimizer), (other, again))
    ]
    same_bits(*states)
    assert len(states[0]) == 3 * len([*quiet.parameters()])


@pytest.mark.parametrize("steps", [0, 2])
def test_a_parameter_that_no_loss_reached_has_no_state_before_or_after(tmp_path, steps):
    config = Config(QUIET.thought, QUIET.optim, RunConfig(objective="plain", seq=7))
    quiet, optimizer = stepped(config, steps)
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    other = module(config.thought)
    again = make_optimizer(other, config.optim)
    load_optimizer(tmp_path, again, names_of(other))
    reached = {names_of(quiet)[p] for p in optimizer.state}
    assert reached == {names_of(other)[p] for p in again.state}
    assert not {name for name in reached if name.startswith("mixer.")}
    assert bool(reached) == (steps > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("exp_avg/start"), r"1 missing \(exp_avg/start\), 0 unexpected"),
        (lambda t: t.update(other=torch.ones(1)), r"0 missing \(none\), 1 unexpected \(other\)"),
        (
            lambda t: t.update({"exp_avg/start": torch.ones(3)}),
            r"expected exp_avg/start of shape \[8\], found \[3\]",
        ),
    ],
    ids=["missing", "unexpected", "of another shape"],
)
def test_an_optimiser_of_another_model_is_refused(tmp_path, change, message):
    quiet, optimizer = stepped()
    save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
    stored = load_file(tmp_path / "optimizer.safetensors")
    change(stored)
    save_file(stored, tmp_path / "optimizer.safetensors")
    with pytest.raises(ValueError, match=message):
        load_optimizer(tmp_path, make_optimizer(quiet, QUIET.optim), names_of(quiet))


@pytest.mark.parametrize("left", [None, 0, -1])
def test_a_missing_or_damaged_optimiser_is_refused(tmp_path, left):
    quiet, optimizer = stepped()
    path = tmp_path / "optimizer.safetensors"
    if left is not None:
        save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))
        path.write_bytes(path.read_bytes()[:left])
    message = "no such file; resume needs" if left is None else "expected a safetensors file, found"
    with pytest.raises(ValueError, match=f"optimizer.safetensors: {message}"):
        load_optimizer(tmp_path, optimizer, names_of(quiet))


def test_a_disk_that_refuses_the_optimiser_is_an_os_error(tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    quiet, optimizer = stepped()
    with pytest.raises(OSError, match="optimizer.safetensors: cannot be written: No space left"):
        save_optimizer(tmp_path, optimizer_tensors(optimizer, names_of(quiet)))


# The log

LINES = [{"commit": "c"}, {"step": 1, "loss": 0.1}, {"step": 2, "loss": None}, {"step": 3}]


def logged(folder):
    log = Log(folder)
    for line in LINES:
        log.write(line)
    return log


def test_a_log_gives_back_its_records(tmp_path):
    assert logged(tmp_path).records() == LINES


@pytest.mark.parametrize("end", ['{"step": 4, "lo', '"', "4", '{"step": 4, "loss": "\n'])
def test_a_line_cut_short_is_left_out_of_the_log(tmp_path, end):
    log = logged(tmp_path)
    with log.path.open("a") as file:
        file.write(end)
    assert log.records() == LINES
    log.cut(9)
    log.write({"step": 10})
    assert log.records() == [*LINES, {"step": 10}]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_a_log_cut_at_a_step_keeps_the_first_line_and_the_steps_up_to_it(tmp_path, step):
    log = logged(tmp_path)
    log.cut(step)
    assert log.records() == LINES[: min(step, 3) + 1]
    assert log.path.read_text() == "".join(json.dumps(x) + "\n" for x in LINES[: min(step, 3) + 1])


def test_cutting_a_log_that_is_not_there_makes_none(tmp_path):
    Log(tmp_path).cut(3)
    assert not [*tmp_path.iterdir()]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    log = Log(tmp_path)
    write_json(tmp_path / "rows.json", {"rows": [{"x": (math.nan, 1.0)}]})
    assert json.loads((tmp_path / "rows.json").read_text()) == {"rows": [{"x": [None, 1.0]}]}
    log.write({"step": 1, "loss": math.nan, "reward": -math.inf, "lr": 0.5})
    assert log.records() == [{"step": 1, "loss": None, "reward": None, "lr": 0.5}]
    write_json(tmp_path / "x.json", {"a": {"b": math.inf}, "c": 1})
    assert read_json(tmp_path / "x.json") == {"a": {"b": None}, "c": 1}
