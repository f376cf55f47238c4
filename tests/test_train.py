"""train: a run that was stopped, however, equals one that was not; a refusal is one line."""

import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import tiny as tools
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import ROOT, contents, init_weights, log, make, only, run, same_checkpoint, spawn, train
from tqdm import tqdm

import qs.model.shards
import qs.training.step
import qs.training.trainer
from qs import files
from qs.config import GROUPS
from qs.evaluation.heldout import HeldoutScore
from qs.evaluation.score_tables import closing_tables
from qs.evaluation.tokens import NllScore
from qs.locks import LOCK, hold
from qs.model import __main__ as model_commands
from qs.model import folders
from qs.quietstar.load import open_model
from qs.quietstar.terms import loss_terms
from qs.tables import terminal
from qs.training.records import bar_text, collapse, collapse_warning
from qs.training.step import train_step
from qs.training.trainer import peak_memory

FLAGS = {
    "quiet": ["--save-every", "2", "--keep", "3", "--micro-batch", "2", "--anchors", "random"]
    + ["--anchor-share", "0.5"],
    "drawn": [
        "--end",
        "drawn",
        "--thought-cost",
        "0.01",
        "--end-text",
        "plus",
        "--save-every",
        "2",
        "--keep",
        "0",
    ],
    # so long that the run reaches into the second epoch of its data
    "plain": ["--objective", "plain", "--save-every", "2", "--keep", "0", "--seq", "40"]
    + ["--batch", "8"],
}
OBJECTIVES = sorted(FLAGS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another tokenizer with its data and model."""
    return make(tmp_path_factory.mktemp("other"), vocab=290)


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """For each objective, a run that was never stopped."""
    out = tmp_path_factory.mktemp("straight")
    return {name: run(out / name, tiny.flags(out / name, *FLAGS[name])) for name in OBJECTIVES}


@pytest.fixture
def stopped(straight, tmp_path):
    """A copy of the quiet run as it was at step 4, with a log that goes on to step 6."""
    copy = shutil.copytree(straight["quiet"], tmp_path / "stopped")
    shutil.rmtree(copy / "step_000006")
    (copy / "results.json").unlink()
    return copy


def same_run(one, other):
    """The same last checkpoint, log and results."""
    same_checkpoint(one / "step_000006", other / "step_000006")
    assert log(one) == log(other)
    for name in ("before.json", "results.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def at_step(number, act):
    """A train_step that acts after computing the given step, 0-based."""
    original = qs.training.trainer.train_step

    def step(*arguments, **others):
        record = original(*arguments, **others)
        if arguments[5] == number:
            act()
        return record

    return step


def refused(capsys, arguments, message, status=2, lines=1):
    """train.py ends with one clear line."""
    capsys.readouterr()
    assert train.main([str(a) for a in arguments]) == status
    err = capsys.readouterr().err.replace("\r", "\n").strip().split("\n")
    assert "Traceback" not in "".join(err)
    assert err[-lines].startswith("error: ")
    assert re.search(message, "\n".join(err[-lines:])), err[-lines:]
    return err


# Stopped and resumed


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_equals_an_uninterrupted_run(
    tiny, straight, tmp_path, monkeypatch, objective
):
    class Died(Exception):
        pass

    def die():
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(qs.training.trainer, "train_step", at_step(4, die))
        with pytest.raises(Died):
            train.main(tiny.flags(tmp_path / "out", *FLAGS[objective]))
    found = only(tmp_path / "out")
    assert [*files.saved_steps(found)] == [2, 4]
    assert len(log(found)) == 4
    assert train.main(["--resume", str(found)]) == 0
    same_run(found, straight[objective])


def test_a_curriculum_goes_on_in_its_stage_and_the_log_names_it(tiny, tmp_path):
    flags = ["--curriculum=2-2,1-1,0", "--save-every=3"]
    whole, half = (run(tmp_path / name, tiny.flags(tmp_path / name, *flags)) for name in "ab")
    assert [line["stage"] for line in log(whole)] == ["2-2", "2-2", "1-1", "1-1", "0", "0"]
    assert ["reward" in line for line in log(whole)] == [True] * 4 + [False] * 2
    shutil.rmtree(half / "step_000006")
    (half / "results.json").unlink()
    assert train.main(["--resume", str(half)]) == 0
    same_run(half, whole)


def test_a_resumed_run_equals_one_that_never_saved_on_the_way(tiny, straight, tmp_path):
    flags = tiny.flags(tmp_path / "out", *FLAGS["quiet"], "--save-every=0")
    found = run(tmp_path / "out", flags)
    assert [*files.saved_steps(found)] == [6]
    same_checkpoint(found / "step_000006", straight["quiet"] / "step_000006")
    assert log(found) == log(straight["quiet"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_checkpoints_on_the_way_hold_the_position_in_the_data(straight, objective):
    windows, rows = (40, 8) if objective == "plain" else (103, 4)
    for step in (2, 4, 6):
        path = straight[objective] / f"step_{step:06d}" / "trainer.json"
        epoch, index = divmod(step * rows, windows)
        counters = {"step": step, "epoch": epoch, "index": index}
        assert json.loads(path.read_text()) == counters | {"skipped": 0, "skipped_in_a_row": 0}


DURING_A_STEP = """
step, calls = qs.training.trainer.train_step, []
def killed(*arguments, **others):
    calls.append(step(*arguments, **others))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls[-1]
qs.training.trainer.train_step = killed
"""
WHILE_SAVING = """
save, calls = qs.training.trainer.checkpoint.save_optimizer, []
def killed(*arguments):
    calls.append(save(*arguments))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
qs.training.trainer.checkpoint.save_optimizer = killed
"""


@pytest.mark.parametrize(
    ("objective", "code", "logged", "left"),
    [
        ("quiet", DURING_A_STEP, 3, []),
        ("plain", WHILE_SAVING, 4, [".step_000004.tmp", ".step_000004.lock"]),
    ],
)
def test_a_killed_process_goes_on_from_its_last_whole_checkpoint(
    tiny, straight, tmp_path, objective, code, logged, left
):
    out = tmp_path / "out"
    done = spawn(
        tiny.flags(out, *FLAGS[objective]), "import os, signal, qs.training.trainer" + code
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = only(out)
    assert [*files.saved_steps(found)] == [2]
    assert {path.name for path in found.glob(".*")} == {".lock", *left}
    assert len(log(found)) == logged
    with (found / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # the disk took no more
    assert train.main(["--resume", str(found)]) == 0
    same_run(found, straight[objective])
    assert not [*found.glob(".*")]


@pytest.mark.parametrize(
    ("number", "objective", "status"),
    [(signal.SIGINT, "quiet", 130), (signal.SIGTERM, "plain", 143)],
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    tiny, straight, tmp_path, monkeypatch, capsys, number, objective, status
):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(
            qs.training.trainer, "train_step", at_step(2, lambda: os.kill(os.getpid(), number))
        )
        out = tmp_path / "my runs"
        found = run(out, tiny.flags(out, *FLAGS[objective]), status)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert [*files.saved_steps(found)] == [2, 3]
    assert len(log(found)) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    command = f"python train.py --resume '{found}'"
    name = signal.Signals(number).name
    assert last == f"stopped by {name} after 3 of 6 steps, saved; go on with: {command}"
    assert train.main(shlex.split(command)[2:]) == 0
    same_run(found, straight[objective])


def test_a_process_that_is_terminated_saves_and_exits_with_143(tiny, tmp_path):
    flags = tiny.flags(tmp_path / "out", "--steps", "100000", "--eval-rows", "0")
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        lines = []
        while len(lines) < 3:
            time.sleep(0.02)
            assert process.poll() is None, process.communicate()
            logs = [path.read_text() for path in tmp_path.rglob("log.jsonl")]
            lines = "".join(logs).splitlines()
        process.terminate()
        printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 143, complaint
    assert "Traceback" not in complaint
    found = only(tmp_path / "out")
    (step,) = files.saved_steps(found)
    assert log(found)[-1]["step"] == step
    assert f"stopped by SIGTERM after {step:d} of 100000 steps, saved" in printed


def test_an_interrupted_evaluation_is_one_line_and_loses_nothing(
    tiny, stopped, straight, capsys, monkeypatch
):
    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(train, "heldout_score", interrupted)
        refused(
            capsys,
            ["--resume", stopped],
            "interrupted by SIGINT; go on .* with --resume",
            status=130,
        )
    assert [*files.saved_steps(stopped)] == [2, 4, 6]
    assert train.main(["--resume", str(stopped)]) == 0
    same_run(stopped, straight["quiet"])


def test_a_finished_run_that_is_resumed_changes_nothing(straight, tmp_path):
    copy = shutil.copytree(straight["quiet"], tmp_path / "copy")
    before = contents(copy)
    assert train.main(["--resume", str(copy)]) == 0
    assert contents(copy) == before


def test_a_finished_run_says_so_and_loads_nothing(straight, monkeypatch, capsys):
    monkeypatch.setattr(train, "load", None)
    assert train.main(["--resume", str(straight["quiet"])]) == 0
    printed = capsys.readouterr().out
    finished = f"{straight['quiet']} is finished: nothing is left to do; to train its model on, "
    assert finished in printed
    assert printed.endswith(
        f"begin a new run: python train.py --weights {straight['quiet']} "
        f"--data {files.read_config(straight['quiet']).run.data} --steps N ...\n"
    )
    assert "held-out" in printed


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--data=x"], "--data x"),
        (["--data=x", "--objective=plain"], "--objective plain --data x"),
        (["--objective=star"], "--objective star --task arithmetic"),
        (
            ["--objective=star", "--task=world", "--no-rationalize"],
            "--objective star --task world --no-rationalize",
        ),
    ],
)
def test_a_run_is_trained_on_by_its_own_objective(given, told, tmp_path):
    run = files.new_run(tmp_path, "run", train.settings(given)[0])
    assert train.longer(run).endswith(f"python train.py --weights {run} {told} --steps N ...")


def test_scores_that_are_damaged_are_refused_in_one_line(straight, tmp_path, capsys):
    copy = shutil.copytree(straight["quiet"], tmp_path / "copy")
    (copy / "results.json").write_text('{"before": null, "after": {"text": 3}}')
    refused(capsys, ["--resume", copy], "results.json: expected the scores of a run")


def test_a_log_that_is_damaged_in_the_middle_loses_the_bad_lines_alone(stopped, straight, capsys):
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2][:9] + "\n"
    lines.insert(3, '{"step": "x"}\n')
    (stopped / "log.jsonl").write_text("".join(lines))
    assert train.main(["--resume", str(stopped)]) == 0
    said = capsys.readouterr().err
    assert "log.jsonl, line 3: expected a JSON object, found" in said
    assert "log.jsonl: expected a step, found 'x'; passed over" in said
    expected = log(straight["quiet"])
    assert log(stopped) == [*expected[:2], *expected[3:]]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("objective", ["quiet", "star"])
def test_a_launcher_that_says_nothing_of_a_meeting_point_is_refused(
    tiny, tmp_path, monkeypatch, capsys, name, objective
):
    monkeypatch.setenv(name, "4")
    flags = [f"--weights={tiny.weights}", f"--out={tmp_path / 'out'}", "--objective", objective]
    if objective == "quiet":
        flags += [f"--data={tiny.data}", "--thoughts=2", "--ahead=2"]
    err = refused(capsys, flags, r"(started 4 processes .* with torchrun|runs in one process)")
    assert len(err) == 1
    assert not (tmp_path / "out").exists()


def test_train_py_finds_what_is_bundled_from_any_folder(tmp_path):
    flags = ["--steps=1", "--batch=1", "--seq=16", "--eval-rows=0", "--grad-norms-every=0"]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *flags],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert only(tmp_path / "runs").name.endswith("-quiet-tiny")


def test_a_machine_that_does_not_tell_its_memory_trains_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory(torch.device("cpu")) is None
    assert bar_text({"nll_base": 1.0, "memory_bytes": None}) == "NLL 1.000"


def test_the_first_signal_is_answered_at_once(tiny, tmp_path, monkeypatch, capfd):
    said = []

    def interrupt():
        os.kill(os.getpid(), signal.SIGHUP)
        said.append(capfd.readouterr().err)

    monkeypatch.setattr(qs.training.trainer, "train_step", at_step(1, interrupt))
    run(tmp_path / "out", tiny.flags(tmp_path / "out"), 128 + signal.SIGHUP)
    assert f"SIGHUP: {train.STOPPING}\n" in said[0]


def test_what_a_process_was_told_to_ignore_it_ignores(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        qs.training.trainer, "train_step", at_step(1, lambda: os.kill(os.getpid(), signal.SIGHUP))
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run(tmp_path / "out", tiny.flags(tmp_path / "out"))
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_says_what_there_is(
    tiny, stopped, tmp_path, monkeypatch, capsys, number
):
    def killed(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(qs.training.trainer, "load", killed)
    again = ["--resume", stopped]
    for flags, kept in ((tiny.flags(tmp_path / "out"), train.NOTHING), (again, train.NOTHING_NEW)):
        message = re.escape(f"interrupted by {number.name}; {kept}")
        assert len(refused(capsys, flags, message, status=128 + number)) == 1


def test_results_of_question_sets_survive_a_resume(straight, tmp_path):
    copy = shutil.copytree(straight["quiet"], tmp_path / "copy")
    after = json.loads((copy / "results.json").read_text())["after"]
    (copy / "results.json").write_text(json.dumps({"exams": {"a": 1}}))
    assert train.main(["--resume", str(copy)]) == 0
    results = json.loads((copy / "results.json").read_text())
    assert results["exams"] == {"a": 1}
    assert results["after"] == after


def test_a_run_is_the_weights_of_another(tiny, straight, tmp_path):
    source = straight["quiet"]
    found = run(
        tmp_path / "out",
        tiny.flags(
            tmp_path / "out",
            f"--weights={source}",
            "--lr=0",
            "--steps=1",
            "--mixer-lr=0",
            "--thought-lr=0",
        ),
    )
    one, two = (
        load_file(f / "model.safetensors") for f in (source / "step_000006", found / "step_000001")
    )
    tools.same_bits(one, two)
    assert (
        json.loads((found / "before.json").read_text())
        == (json.loads((source / "results.json").read_text())["after"])
    )


# What a run writes and prints


def test_a_run_prints_its_choices_a_table_and_its_folder(tiny, tmp_path, capsys):
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out"))
    printed = capsys.readouterr().out
    results = json.loads((found / "results.json").read_text())
    assert results["before"] == json.loads((found / "before.json").read_text())
    assert results["skipped"] == 0
    assert set(results["after"]["text"]) == {field.name for field in dataclasses.fields(NllScore)}
    assert (found / "thoughts.html").read_text().count("<section") > 1
    for line in (
        f"model   {tiny.weights}: 13,520 parameters, 848 added for thinking",
        f"data    {tiny.data}: 1,",
        "device  CPU, float32 arithmetic, float32 weights, structured attention, eager",
        f"run     {found}",
        f"run folder: {found} (settings, log.jsonl, checkpoint, results.json, thoughts.html)",
        f"what it thought, as a page: {found / 'thoughts.html'}",
        terminal(
            *closing_tables(*map(HeldoutScore.from_json, (results["before"], results["after"])))
        ),
    ):
        assert line in printed
    assert results["after"]["text"]["nll_base"] < results["before"]["text"]["nll_base"]
    first, steps = files.made_by(found), log(found)
    machine = {"commit", "python", "torch", "device", "threads", "processes"}
    assert machine | {"data", "parts"} == first.keys()
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "nll_base", "nll_talk", "policy", "gain", "reward"}
    wanted |= {"weight_mean", "weight_std"}
    wanted |= {"thought_entropy", "thought_top", "thought_same"}
    wanted |= {"grad_norm", "grad_norm_base", "grad_norm_talk", "grad_norm_policy", "lr"}
    raw = json.loads((found / "log.jsonl").read_text().splitlines()[0])
    assert wanted | tools.CLOCK | {"step", "skipped"} == raw.keys()
    assert raw["thought_tokens_per_second"] == pytest.approx(4 * raw["tokens_per_second"])
    assert raw["memory_bytes"] > 0


def test_a_run_of_pauses_says_so_and_counts_no_thought_tokens(tiny, tmp_path):
    flags = tiny.flags(tmp_path / "out", "--objective=pause", "--steps=2")
    found = run(tmp_path / "out", flags)
    page = (found / "thoughts.html").read_text()
    assert "2 steps of pause training" in page
    assert "Quiet-STaR" not in page
    assert "thought_tokens_per_second" not in (found / "log.jsonl").read_text()
    assert "reward" in log(found)[0]


def test_at_the_first_step_thinking_changes_no_prediction(straight):
    before = json.loads((straight["quiet"] / "before.json").read_text())["text"]
    assert before["nll_mix"] == before["nll_base"]
    assert before["gain"] == before["gain_interval"] == before["weight"] == 0
    first = log(straight["quiet"])[0]
    assert first["weight_mean"] == first["gain"] == 0


def test_gradients_of_terms_are_measured_as_often_as_asked(tiny, tmp_path):
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--grad-norms-every", "4"))
    assert ["grad_norm_talk" in record for record in log(found)] == [
        True,
        *[False] * 3,
        True,
        False,
    ]


def test_a_run_whose_thoughts_end_themselves_says_how_long_they_are(straight, tmp_path):
    found, name = straight["drawn"], "end_output_embedding"
    for record in log(found):
        assert 0 < record["thought_length"] < 2
    for score in ("before", "after"):
        text = json.loads((found / "results.json").read_text())[score]["text"]
        assert 0 < text["length"] < 2
    assert "thought_length" not in log(straight["quiet"])[0]
    assert json.loads((straight["quiet"] / "before.json").read_text())["text"]["length"] is None
    (first, last) = (
        load_file(found / f"step_00000{step}" / "model.safetensors")[name] for step in (2, 6)
    )
    assert not torch.equal(first, last)  # it is trained
    export = ["export", str(found), f"--out={tmp_path / 'w'}", "--layout"]
    assert model_commands.main([*export, "quietstar"]) == 0
    assert torch.equal(load_file(tmp_path / "w" / "model.safetensors")[name], last)
    shutil.rmtree(tmp_path / "w")
    assert model_commands.main([*export, "hf"]) == 0
    assert name not in load_file(tmp_path / "w" / "model.safetensors")


def test_a_run_without_evaluation_says_so(tiny, tmp_path, capsys):
    flags = tiny.flags(tmp_path / "out", "--eval-rows", "0", "--steps", "1")
    found = run(tmp_path / "out", flags)
    assert "no held-out text was evaluated" in capsys.readouterr().out
    assert json.loads((found / "results.json").read_text()) == (
        {"before": None, "after": None, "skipped": 0}
    )


def test_plain_training_keeps_the_layout_of_a_language_model(straight):
    shape = json.loads((straight["plain"] / "step_000006" / "config.json").read_text())
    names = load_file(straight["plain"] / "step_000006" / "model.safetensors")
    assert "quiet_star" not in shape
    assert not [name for name in names if "talk_head" in name or "start" in name]


def test_bfloat16_arithmetic_moves_float32_weights_by_a_millionth(tiny, tmp_path, capsys):
    flags = ["--dtype", "bfloat16", "--lr", "1e-6", "--mixer-lr", "1e-6", "--thought-lr", "1e-6"]
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", *flags, "--warmup=0", "--steps=2"))
    told = "CPU, bfloat16 arithmetic, bfloat16 weights with float32 masters"
    assert told in capsys.readouterr().out
    before = load_file(tiny.weights / "model.safetensors")
    after = load_file(found / "step_000002" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    large = before["lm_head.weight"].abs() > 5e-4  # where a bfloat16 weight could not move
    moved = (after["lm_head.weight"] - before["lm_head.weight"])[large].abs()
    assert (moved > 0).float().mean() > 0.99
    assert moved.max() < 3e-6
    exact = run(tmp_path / "exact", tiny.flags(tmp_path / "exact", *flags[2:], "--steps=1"))
    assert log(exact)[0]["loss"] != log(found)[0]["loss"]  # it was bfloat16 indeed


def test_the_progress_bar_shows_what_a_record_has():
    record = {"loss": 1.23456, "nll_base": 2.0, "grad_norm_policy": 12345.0}
    assert bar_text(record) == "NLL 2.000"
    record |= {"gain": -11.25, "reward": -0.0625, "weight_mean": -0.125, "thought_top": 1.0}
    shown = bar_text(record)
    assert shown == "COLLAPSED, NLL 2.000, gain -11.250, reward -0.062, w -0.12"
    del record["thought_top"]
    place = {"n": 120, "total": 240, "elapsed": 3600}
    for text in (shown, bar_text(record)):  # in the width of an old terminal
        line = tqdm.format_meter(**place, ncols=80, bar_format=train.BAR, postfix=text)
        assert line.startswith(f"120/240, {text}, ")
        assert len(line) <= 80
    assert "1:00:00 left" in line
    assert 2**20 < peak_memory(torch.device("cpu")) < 2**45


def test_collapsed_thoughts_are_in_the_log_in_the_bar_and_in_the_closing_words(
    tiny, tmp_path, monkeypatch, capsys
):
    def collapse(*arguments, **keywords):
        anchors, thoughts = think(*arguments, **keywords)
        return anchors, torch.full_like(thoughts, 7)

    think = qs.quietstar.algorithm.QuietStar.think
    sound = run(tmp_path / "sound", tiny.flags(tmp_path / "sound", "--eval-rows=0"))
    assert "warning" not in capsys.readouterr().out
    record = log(sound)[-1]
    assert 1 < record["thought_entropy"] < math.log(300)
    assert 0 < record["thought_top"] < 0.5
    assert 0 <= record["thought_same"] < 0.1
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", after(train.Trainer.step, 3, patch, collapse))
        found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--eval-rows=0"))
    shown = capsys.readouterr()
    assert "warning: thoughts have collapsed, since step 4: one token is 100.0% of" in shown.out
    assert "COLLAPSED, NLL" in shown.err
    last = {"thought_entropy": 0.0, "thought_top": 1.0, "thought_same": 1.0}
    assert last.items() <= log(found)[-1].items()
    assert log(found)[2]["thought_top"] < 0.5


def after(step, number, patch, collapse):
    """A step of the trainer from whose given one on thoughts have collapsed."""

    def counted(trainer):
        if trainer.state.step == number:
            patch.setattr(qs.quietstar.algorithm.QuietStar, "think", collapse)
        return step(trainer)

    return counted


def test_each_sign_of_collapse_is_named():
    sound = {"thought_entropy": 2.0, "thought_top": 0.3, "thought_same": 0.5}
    assert collapse(sound) == collapse({}) == ""
    assert collapse(sound | {"thought_top": 0.996}).startswith("one token is 99.6%")
    assert "entropy of 0.050 nats" in collapse(sound | {"thought_entropy": 0.05})
    assert "K thoughts are equal at 99.5%" in collapse(sound | {"thought_same": 0.995})
    records = [{"step": n} | sound | {"thought_top": top} for n, top in enumerate((1, 0.2, 1, 1))]
    assert "since step 2" in collapse_warning([{"commit": None}, *records])
    assert collapse_warning(records[:2]) == collapse_warning([]) == ""


def test_help_mentions_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    fields = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    for name in [*fields, "resume", "preset"]:
        assert re.search(rf"^  (-\S+, )?--{name.replace('_', '-')}\b", printed, re.M), name
    assert "python train.py --data owm --thoughts 16" in printed


# Steps that are not finite


ONCE = ["--grad-norms-every", "0"]  # no pass but the step's own


def poison(monkeypatch, steps):
    """The loss of some steps, counted from 0, is NaN."""
    number = iter(range(1000))

    def terms(*arguments):
        found = loss_terms(*arguments)
        return found._replace(base=found.base * math.nan) if next(number) in steps else found

    monkeypatch.setattr(qs.quietstar.algorithm, "loss_terms", terms)


def test_steps_that_are_not_finite_are_skipped_and_counted(tiny, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {1, 2})
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", *ONCE))
    assert [record["skipped"] for record in log(found)] == [0, 1, 1, 0, 0, 0]
    assert log(found)[1]["loss"] is None
    trainer = json.loads((found / "step_000006" / "trainer.json").read_text())
    assert (trainer["skipped"], trainer["skipped_in_a_row"]) == (2, 0)
    assert json.loads((found / "results.json").read_text())["skipped"] == 2
    assert "2 steps were skipped: their loss or gradient was not finite" in capsys.readouterr().out
    stored = tools.tensors(found / "step_000006")
    assert {float(t) for name, t in stored.items() if "/step/" in name} == {4}
    assert all(tensor.isfinite().all() for tensor in stored.values())


def test_ten_skipped_steps_in_a_row_stop_and_name_the_last_good_checkpoint(
    tiny, tmp_path, monkeypatch, capsys
):
    poison(monkeypatch, {*range(1, 10), *range(13, 99)})  # nine in a row are borne
    flags = tiny.flags(tmp_path / "out", *ONCE, "--steps", "40", "--save-every", "2")
    refused(
        capsys,
        flags,
        r"10 steps in a row had a loss or gradient that is not finite \(last: step 23\); the last "
        r"good checkpoint is \S+/step_000012 \(start again from it with --weights\); lower --lr",
    )
    found = only(tmp_path / "out")
    assert len(log(found)) == 23
    good = found / "step_000012"
    assert json.loads((good / "trainer.json").read_text())["skipped"] == 9
    monkeypatch.setattr(qs.quietstar.algorithm, "loss_terms", loss_terms)
    run(tmp_path / "next", tiny.flags(tmp_path / "next", f"--weights={good}", "--steps=1"))


def test_skipped_steps_in_a_row_are_counted_across_a_resume(tiny, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison(patch, range(2, 99))
        patch.setattr(
            qs.training.trainer,
            "train_step",
            at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT)),
        )
        found = run(tmp_path / "out", tiny.flags(tmp_path / "out", *ONCE, "--steps", "30"), 130)
    poison(monkeypatch, range(99))
    refused(capsys, ["--resume", found], r"\(last: step 12\); no checkpoint was saved before them")


def test_parameters_that_are_not_finite_are_never_saved(tiny, tmp_path, monkeypatch, capsys):
    flags = ["--objective", "plain", "--steps", "30", "--save-every", "1"]

    def overflow(*arguments, **keywords):
        record = train_step(*arguments, **keywords)
        arguments[0].model.norm.weight.data.fill_(math.inf)
        return record

    monkeypatch.setattr(qs.training.trainer, "train_step", overflow)
    refused(
        capsys,
        tiny.flags(tmp_path / "out", *ONCE, *flags),
        r"step 1 left parameters that are not finite, .*; no checkpoint was saved before them",
    )
    assert not list((tmp_path / "out").glob("*/*step_*"))


def weights_with(tiny, folder, number):
    """A copy of the weights, as a download is, with one number in a norm."""
    shutil.copytree(tiny.weights, folder)
    (folder / "digests.json").unlink()
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"][3] = number
    save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tiny, tmp_path, capsys, number):
    folder = weights_with(tiny, tmp_path / "w", number)
    message = r"w/model.safetensors: model.norm.weight: expected finite numbers, found NaN or"
    (line,) = refused(capsys, tiny.flags(tmp_path / "out", f"--weights={folder}"), message)
    assert "get the file again" in line
    assert not (tmp_path / "out").exists()


def test_a_model_whose_outputs_are_not_finite_stops_thinking_training_too(tiny, tmp_path, capsys):
    folder = weights_with(tiny, tmp_path / "w", 3e38)
    flags = tiny.flags(tmp_path / "out", *ONCE, "--steps", "30", f"--weights={folder}")
    refused(capsys, flags, r"\(last: step 10\); no checkpoint was saved before them")


# Refusals on the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--samples 1", r"--samples 1 leaves the mean baseline nothing.*--baseline none"),
        ("--thoughts -1", "--thoughts must be at least 0, got -1"),
        ("--thoughts 0", "--thoughts 0 leaves REINFORCE no token"),
        ("--thoughts 40", r"--seq 16 \(and 43 positions of a thought\) exceeds the 48 positions"),
        ("--ahead 0", "--ahead must be at least 1, got 0"),
        ("--ahead 16", r"--ahead 16 does not fit in rows of --seq 16 tokens"),
        ("--ahead 15 --thoughts 20", r"--seq 16 \(and 36 positions of a thought\) exceeds the 48"),
        ("--seq 49 --objective plain", r"--seq 49 .*exceeds the 48 positions"),
        ("--seq 1", "--seq must be at least 2, got 1"),
        ("--micro-batch 3", "--micro-batch 3 does not divide --batch 4"),
        ("--lr nan", "--lr: expected a finite number, found nan"),
        ("--clip 0", "--clip must be above 0"),
        ("--steps 0", "--steps must be at least 1"),
        ("--device cuda", "--device cuda: this machine shows no CUDA device"),
        ("--no-such-flag 3", r"unrecognized arguments: --no-such-flag 3; see .* --help"),
        ("--ahe 3", r"unrecognized arguments: --ahe 3; did you mean --ahead\?; see"),
        ("--likelihood-weight 0 --objective pause", "--likelihood-weight 0 without REINF"),
        ("--likelihood-weight 0", "--likelihood-weight 0 leaves a new mixing head .*run$"),
        ("--base-weight 1", "--base-weight 1 leaves a new mixing head untrained, .* add --mix-we"),
        ("--base-weight 1 --curriculum 2-2,0", "--base-weight 1 leaves a new mixing head"),
        ("--base-weight 1 --beta 0", "--base-weight 1 without REINFORCE trains no thinking: lower"),
        ("--base-weight 1 --objective pause", "--base-weight 1 without REINFORCE trains no thinki"),
        ("--reference average --reward exact", "--reference average is of --reward information"),
        ("--steps ten", r"argument --steps: invalid int value: 'ten'; see .* --help"),
        ("--preset big", r"argument --preset: invalid choice: 'big'"),
        ("--start-text=", "--start-text and --end-text must not be empty"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(
    tiny, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = refused(capsys, tiny.flags(tmp_path / "out", *flags.split()), message)
    assert len(err) == 1
    assert not (tmp_path / "out").exists()


def test_a_typo_in_the_data_leads_to_the_nearest_name_and_no_download(tmp_path, capsys):
    err = refused(capsys, [f"--out={tmp_path / 'out'}", "--data=tny"], "did you mean tiny", lines=2)
    assert err[0].startswith("error: --data tny: expected a prepared dataset")
    assert "hf download" not in "".join(err)


def test_data_that_was_never_prepared_is_refused_with_the_two_commands(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    err = refused(capsys, tiny.flags(tmp_path / "out", "--data", "owm"), "--data owm", lines=3)
    assert err[-2].startswith("hf download open-web-math/open-web-math --repo-type dataset")
    prepare = "python -m qs.data prepare data/raw/owm --out data/owm --tokenizer weights/mistral-7b"
    assert err[-1] == prepare
    assert len(err) == 3
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("make_wrong", "message", "lines"),
    [
        (lambda t, o, w: ["--weights", w], "w: expected a checkpoint, found no such folder", 1),
        (lambda t, o, w: ["--weights", "mistral-7b"], "get it with: hf download mistralai/", 1),
        (lambda t, o, w: ["--weights", t.data], "found none; give the folder that holds the", 1),
        (lambda t, o, w: ["--weights", t.data / "meta.json"], "found no such folder", 1),
        (lambda t, o, w: ["--weights", o.weights], "prepare the data again with this token", 1),
        (lambda t, o, w: ["--data", o.data], "expected the shards' tokenizer", 1),
        (lambda t, o, w: ["--data", w], "expected a prepared dataset, found no meta.json", 2),
        (lambda t, o, w: ["--data", t.data / "meta.json"], "expected a prepared dataset", 2),
        (lambda t, o, w: ["--data", t.weights], "expected a prepared dataset", 2),
        (lambda t, o, w: ["--out", t.data / "meta.json" / "x"], "cannot be made in .*meta.json", 1),
    ],
    ids=[
        *("weights missing", "weights not downloaded", "data as weights", "file as weights"),
        *("other weights", "other data", "data missing", "file as data", "weights as data"),
        "file as out",
    ],
)
def test_a_wrong_folder_is_refused_and_left_as_it_was(
    tiny, other, tmp_path, monkeypatch, capsys, make_wrong, message, lines
):
    monkeypatch.chdir(tmp_path)
    wrong = [str(a) for a in make_wrong(tiny, other, tmp_path / "w")]
    before = contents(tiny.data) | contents(tiny.weights)
    err = refused(capsys, tiny.flags(tmp_path / "out", *wrong), message, lines=lines)
    assert len(err) == lines
    assert contents(tiny.data) | contents(tiny.weights) == before
    assert not [*tmp_path.iterdir()]


DAMAGES = {
    "other tokenizer": (
        lambda w, o: shutil.copy(o.tokenizer / "tokenizer.model", w),
        "prepare the data again with this token",
    ),
    "no tokenizer": (
        lambda w, o: (w / "tokenizer.model").unlink(),
        "expected tokenizer.model or tokenizer.json",
    ),
    "no tensors": (lambda w, o: (w / "model.safetensors").unlink(), "found none; give the folder"),
    "cut tensors": (
        lambda w, o: (w / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        "model.safetensors: expected a safetensors file, found",
    ),
    "missing tensor": (
        lambda w, o: save_file(
            {n: t for n, t in load_file(w / "model.safetensors").items() if n != "lm_head.weight"},
            w / "model.safetensors",
        ),
        r"1 tensor missing \(lm_head.weight\)",
    ),
    "config": (lambda w, o: (w / "config.json").write_text("{"), "config.json: expected JSON"),
    "no step": (
        lambda w, o: (shutil.rmtree(w), w.mkdir(), (w / "step_000002").mkdir()),
        r"found none; no checkpoint of \S+ is whole: start it again",
    ),
    "run without step": (
        lambda w, o: (w / "model.safetensors").unlink() or (w / "config.json").write_text("{}"),
        "config.json: expected model_type mistral",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_in_one_line(tiny, other, tmp_path, capsys, damage):
    folder = shutil.copytree(tiny.weights, tmp_path / "w")
    change, message = DAMAGES[damage]
    (folder / "digests.json").unlink()  # as a download
    change(folder, other)
    flags = tiny.flags(tmp_path / "out", f"--weights={folder}")
    assert len(refused(capsys, flags, message)) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "train-00000.bin").write_bytes(b"12"), "expected .* bytes, found 2"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json: expected JSON"),
        (lambda d: (d / "heldout-00000.idx").unlink(), "found no file; prepare the dataset again"),
    ],
)
def test_damaged_data_is_refused_in_one_line(tiny, tmp_path, capsys, change, message):
    folder = shutil.copytree(tiny.data, tmp_path / "d")
    change(folder)
    assert len(refused(capsys, tiny.flags(tmp_path / "out", f"--data={folder}"), message)) == 1
    assert not (tmp_path / "out").exists()


def test_text_shorter_than_a_row_is_refused(tiny, tmp_path, capsys):
    long = tmp_path / "long"
    command = ["init", f"--out={long}", f"--tokenizer={tiny.tokenizer}", "--dim=4", "--layers=1"]
    sizes = ["--heads=1", "--hidden-dim=4", "--max-positions=9999"]
    assert tools.model_commands.main([*command, *sizes]) == 0
    flags = tiny.flags(tmp_path / "out", "--seq=4000", f"--weights={long}")
    refused(capsys, flags, r"one window of 4000 tokens in the split train, found 1669.*lower --seq")
    assert not (tmp_path / "out").exists()


# Refusals to resume


def test_resume_takes_no_other_flag(stopped, capsys):
    before = contents(stopped)
    for arguments in (["--resume", stopped, "--steps", "9"], [f"--resume={stopped}", "--lr=1"]):
        message = (
            rf"--resume takes every setting from {stopped}/config.json; drop --(steps|lr=1); to "
            rf"train its model on, .* python train.py --weights {stopped} --data \S+ --steps N"
        )
        refused(capsys, arguments, message)
    refused(capsys, ["--resume"], "argument --resume: expected one argument")
    assert contents(stopped) == before


def test_a_run_goes_on_with_no_other_data_than_it_began_with(stopped, tiny, tmp_path, capsys):
    data = tmp_path / "data"
    for name, text in (("same", "{} plus {} is"), ("other", "{} plus {} be")):
        lines = [json.dumps({"text": text.format(a, b)}) for a in range(40) for b in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def prepare(name):
        source, settings = tmp_path / f"{name}.jsonl", {"workers": 1, "overwrite": True}
        tools.prepare_dataset([source], data, tiny.tokenizer, heldout=0.1, **settings)

    prepare("same")
    out = tmp_path / "out"
    begun = run(out, tiny.flags(out, f"--data={data}", "--save-every=2"))
    shutil.rmtree(begun / "step_000006")
    prepare("other")
    before = contents(begun)
    (line,) = refused(capsys, ["--resume", begun], "data: expected the data that .* was begun with")
    assert "or begin a new run from" in line
    assert contents(begun) == before
    prepare("same")
    assert train.main(["--resume", str(begun)]) == 0
    made = files.made_by(begun)
    assert len(made.pop("data")) == 16
    files.write_json(begun / "run.json", made)  # as older runs wrote it
    (begun / "results.json").unlink()
    prepare("other")
    assert train.main(["--resume", str(begun)]) == 0


def test_a_run_whose_log_begins_with_its_machine_goes_on(stopped, straight):
    log = files.JsonLines(stopped / "log.jsonl")
    log.rewrite([files.made_by(stopped), *log.records()])  # as older runs wrote it
    made = (stopped / "run.json").read_text()
    (stopped / "run.json").unlink()
    assert train.main(["--resume", str(stopped)]) == 0
    same_run(stopped, straight["quiet"])
    assert (stopped / "run.json").read_text() == made


def test_a_run_that_goes_on_elsewhere_says_what_that_costs(stopped, capsys):
    made = files.made_by(stopped)
    files.write_json(stopped / "run.json", made | {"threads": 99, "torch": "1.0"})
    assert train.main(["--resume", str(stopped)]) == 0
    threads, torch_version = made["threads"], made["torch"]
    warning = f"begun with threads 99, now {threads}; torch 1.0, now {torch_version}: it rounds"
    assert f"warning: {warning}" in capsys.readouterr().out
    assert files.made_by(stopped)["threads"] == 99


def test_training_on_keeps_how_thoughts_end_or_says_that_it_does_not(tiny, tmp_path, capsys):
    learned = run(tmp_path / "a", tiny.flags(tmp_path / "a", "--end=drawn", "--steps=1"))
    weights = f"--weights={learned}"
    capsys.readouterr()
    run(tmp_path / "b", tiny.flags(tmp_path / "b", weights, "--steps=1"))
    warning = r"warning: .*/step_000001: its thoughts end themselves, .* add --end drawn to keep it"
    assert re.search(warning, capsys.readouterr().err)
    flags = train.longer(learned).split(" --steps N")[0].split(str(tiny.data))[1].split()
    assert flags == ["--end", "drawn"]
    run(tmp_path / "c", tiny.flags(tmp_path / "c", weights, "--steps=1", *flags))
    run(tmp_path / "d", tiny.flags(tmp_path / "d", weights, "--steps=1", "--objective=plain"))
    assert "warning: " not in capsys.readouterr().err
    assert train.longer(only(tmp_path / "d")).endswith(f"--data {tiny.data} --steps N ...")


def test_every_line_of_a_log_is_a_step(straight):
    lines = (straight["quiet"] / "log.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    shortest = min(records, key=len).keys()
    assert all(shortest <= record.keys() for record in records)
    for key in set().union(*records):  # a column of a table: one kind of values, flat
        kinds = {type(record[key]) for record in records if record.get(key) is not None}
        assert kinds <= {int, float} or kinds == {str}, key


def cut(path, left):
    path.write_bytes(path.read_bytes()[:left])


COUNTERS = {"step": 4, "epoch": 0, "index": 8, "skipped": 0, "skipped_in_a_row": 0}
UNSOUND = {
    "no folder": (shutil.rmtree, "stopped: expected the folder of a run, found no such folder"),
    "a file": (lambda r: (shutil.rmtree(r), r.write_text("x")), "found no such folder"),
    "a model": (
        lambda r: shutil.copy(r / "step_000004" / "config.json", r),
        r"config.json: expected the settings of a run.*is .* a run folder\?",
    ),
    "no checkpoint": (
        lambda r: [shutil.rmtree(r / f"step_00000{n}") for n in (2, 4)],
        r"no checkpoint \(step_\*/\) to go on from; start the run again with `python train.py`",
    ),
    "stopped before it saved": (
        lambda r: [
            *(shutil.rmtree(r / f"step_00000{n}") for n in (2, 4)),
            (r / "before.json").unlink(),
        ],
        r"no checkpoint \(step_\*/\) to go on from",
    ),
    "no counters": (
        lambda r: (r / "step_000004/trainer.json").unlink(),
        r"step_000004: expected trainer.json, found none; no checkpoint of \S+ is whole: start it",
    ),
    "damaged counters": (
        lambda r: cut(r / "step_000004/trainer.json", 9),
        "trainer.json: expected JSON",
    ),
    "a list": (
        lambda r: (r / "step_000004/trainer.json").write_text("[]"),
        r"trainer.json: expected counters by name, found \[\]",
    ),
    "a word": (
        lambda r: (r / "step_000004/trainer.json").write_text('{"step": "four"}'),
        "trainer.json: expected counters by name",
    ),
    "a negative step": (
        lambda r: (r / "step_000004/trainer.json").write_text(json.dumps(COUNTERS | {"step": -1})),
        "trainer.json: expected counters by name",
    ),
    "a step that was not skipped": (
        lambda r: files.write_json(r / "step_000004/trainer.json", COUNTERS | {"skipped": 1}),
        r"expected 3 steps at most, as in trainer\.json, found 4 in step/",
    ),
    "fewer counters": (
        lambda r: (r / "step_000004/trainer.json").write_text('{"step": 4}'),
        r"trainer.json: 4 missing \(epoch, index, skipped, skipped_in_a_row\), 0 unexpected",
    ),
    "cut optimiser": (
        lambda r: cut(r / "step_000004/optimizer.safetensors", -4),
        "optimizer.safetensors: expected a safetensors file",
    ),
    "cut weights": (
        lambda r: cut(r / "step_000004/model.safetensors", -4),
        "model.safetensors: expected a safetensors file",
    ),
    "damaged score": (lambda r: cut(r / "before.json", 9), "before.json: expected JSON"),
    "another score": (
        lambda r: (r / "before.json").write_text("[]"),
        r"before.json: expected a score, found \[\]",
    ),
}


@pytest.mark.parametrize("damage", UNSOUND)
def test_a_run_that_is_not_sound_is_not_resumed_and_left_as_it_was(stopped, capsys, damage):
    change, message = UNSOUND[damage]
    change(stopped)
    if stopped.is_dir():
        shutil.rmtree(stopped / "step_000002", ignore_errors=True)
        (stopped / "step_000004" / "digests.json").unlink(missing_ok=True)  # as older runs are
    before = contents(stopped)
    assert len(refused(capsys, ["--resume", stopped], message)) == 1
    assert contents(stopped) == before


def test_settings_that_were_changed_are_told_and_the_weights_can_go_on_otherwise(
    tiny, stopped, tmp_path, capsys
):
    config = files.read_json(stopped / "config.json")
    config["run"]["steps"] = 5
    files.write_json(stopped / "config.json", config)
    before = contents(stopped)
    refused(capsys, ["--resume", stopped], "config.json: expected the settings that training wrote")
    refused(capsys, ["--resume", stopped, "--steps=5"], f"--weights {stopped}")
    assert contents(stopped) == before
    found = run(tmp_path / "new", tiny.flags(tmp_path / "new", f"--weights={stopped}", "--steps=1"))
    assert files.finished(found)


def test_a_run_that_trains_elsewhere_says_so_before_its_first_checkpoint(stopped, capsys):
    for step in files.saved_steps(stopped).values():
        shutil.rmtree(step)
    with hold(stopped / LOCK):
        refused(capsys, ["--resume", stopped], "expected no other process that writes here, found")


# Damage to what was saved


def damaged(step, name):
    """Turn a bit in the middle of a file of a checkpoint."""
    content = bytearray((step / name).read_bytes())
    content[len(content) // 2] ^= 1
    (step / name).write_bytes(content)


SAVED = ["model.safetensors", "optimizer.safetensors", "trainer.json", "config.json"]


@pytest.mark.parametrize("name", [*SAVED, "tokenizer.model", "digests.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_that_is_whole(
    stopped, straight, capsys, name
):
    newest = stopped / "step_000004"
    damaged(newest, name)
    assert train.main(["--resume", str(stopped)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "step_000004" in line]
    assert re.search(rf"{name}\b.*; taking \S+/step_000002, the newest that is whole", told[0])
    assert told[1] == f"{newest}: now step_000004.damaged; remove it"
    assert len(told) == 2
    same_run(stopped, straight["quiet"])
    same_checkpoint(newest, straight["quiet"] / "step_000004")


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_trained_again(
    straight, tmp_path, capsys
):
    copy = shutil.copytree(straight["quiet"], tmp_path / "copy")
    damaged(copy / "step_000006", "model.safetensors")
    assert train.main(["--resume", str(copy)]) == 0
    assert "step_000006: now step_000006.damaged" in capsys.readouterr().err
    same_run(copy, straight["quiet"])


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.json", "tokenizer.model"])
def test_what_is_read_of_a_run_is_its_newest_whole_checkpoint(stopped, tmp_path, capsys, name):
    damaged(stopped / "step_000004", name)
    before = contents(stopped)
    out = tmp_path / "out"
    assert model_commands.main(["export", str(stopped), "--layout=hf", f"--out={out}"]) == 0
    printed = capsys.readouterr()
    assert re.search(rf"{name}: expected .*; taking \S+step_000002, the newest", printed.err)
    assert f"{out}: {stopped / 'step_000002'} as hf" in printed.out
    assert contents(stopped) == before
    with pytest.raises(ValueError, match=f"{name}: expected what digests.json says was written"):
        open_model(str(stopped / "step_000004"))


def test_a_run_of_which_nothing_is_whole_ends_with_one_line_and_stays(stopped, capsys):
    damaged(stopped / "step_000004", "trainer.json")
    (stopped / "step_000002" / "config.json").unlink()
    before = contents(stopped)
    (line,) = refused(capsys, ["--resume", stopped], "step_000004/trainer.json: expected what dig")
    assert line.endswith(f"; no checkpoint of {stopped} is whole: start it again")
    assert contents(stopped) == before


def test_weights_that_are_whole_can_be_trained_on_where_no_checkpoint_is(stopped, capsys):
    shutil.rmtree(stopped / "step_000002")
    damaged(stopped / "step_000004", "optimizer.safetensors")
    (line,) = refused(capsys, ["--resume", stopped], "optimizer.safetensors: expected what digests")
    advice = f"start it again, or begin a new run from its weights with --weights {stopped}"
    assert line.endswith(advice)
    assert folders.resolve(stopped) == stopped / "step_000004"


def test_lines_that_a_log_lacks_are_counted(stopped, straight, capsys):
    log = files.JsonLines(stopped / "log.jsonl")
    log.rewrite([r for r in log.records() if r.get("step", 0) < 3])
    assert train.main(["--resume", str(stopped)]) == 0
    err = capsys.readouterr().err
    assert (
        "log.jsonl: expected a line for each of 4 steps, found none for 2 (the first is 3)" in err
    )
    same_checkpoint(stopped / "step_000006", straight["quiet"] / "step_000006")


def test_as_many_checkpoints_are_kept_as_asked(tiny, straight, tmp_path):
    flags = tiny.flags(tmp_path / "out", *FLAGS["quiet"], "--save-every=1", "--keep=2")
    found = run(tmp_path / "out", flags)
    assert [*files.saved_steps(found)] == [5, 6]
    assert not [*found.glob(".*")]
    same_checkpoint(found / "step_000006", straight["quiet"] / "step_000006")


def test_a_checkpoint_is_removed_only_after_the_new_one_is_whole(stopped, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    config = json.loads((stopped / "config.json").read_text())
    config["run"]["keep"] = 1
    files.write_json(stopped / "config.json", config)
    (stopped / "digests.json").unlink()  # as older runs are
    with monkeypatch.context() as patch:
        patch.setattr(qs.model.shards, "save_file", full)
        refused(capsys, ["--resume", stopped], "the checkpoint of step 6 could not be written")
    assert [*files.saved_steps(stopped)] == [2, 4]
    assert train.main(["--resume", str(stopped)]) == 0
    assert [*files.saved_steps(stopped)] == [6]


def test_a_run_is_saved_when_enough_time_has_passed(tiny, tmp_path, monkeypatch):
    now = itertools.count(0, 20.0)  # seconds, each time that it is asked
    clock = SimpleNamespace(monotonic=lambda: next(now), perf_counter=time.perf_counter)
    monkeypatch.setattr(qs.training.trainer, "time", clock)
    flags = tiny.flags(tmp_path / "out", "--keep=0", "--save-minutes=1")
    assert [*files.saved_steps(run(tmp_path / "out", flags))] == [3, 6]


# What goes wrong on the way


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["CUDA", "CPU", "Python"])
def test_running_out_of_memory_names_the_settings_to_lower(
    stopped, straight, monkeypatch, capsys, error
):
    def fail():
        raise error

    saved = {n: contents(stopped / n) for n in ("step_000002", "step_000004")}
    with monkeypatch.context() as patch:
        patch.setattr(qs.training.trainer, "train_step", at_step(4, fail))
        refused(
            capsys,
            ["--resume", stopped],
            "lower --micro-batch .* --seq, --thoughts and --samples .*, or pass --recompute",
        )
    assert {n: contents(stopped / n) for n in saved} == saved
    assert train.main(["--resume", str(stopped)]) == 0
    same_run(stopped, straight["quiet"])


def test_a_real_allocation_that_fails_is_told_in_one_line(tiny, tmp_path, monkeypatch, capsys):
    def allocate():
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(qs.training.trainer, "train_step", at_step(0, allocate))
    refused(capsys, tiny.flags(tmp_path / "out"), "out of memory: lower --micro-batch")


def test_an_error_of_our_own_is_not_hidden(tiny, tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(qs.training.trainer, "train_step", at_step(0, fail))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train.main(tiny.flags(tmp_path / "out"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_refuses_a_save_loses_no_checkpoint(
    stopped, straight, monkeypatch, capsys, error
):
    def full(*_, **__):
        raise error

    saved = {n: contents(stopped / n) for n in ("step_000002", "step_000004")}
    with monkeypatch.context() as patch:
        patch.setattr(qs.model.shards, "save_file", full)
        message = "the checkpoint of step 6 could not be written: it needs 0.000"
        line = refused(capsys, ["--resume", stopped], message)[-1]
    assert re.search(r" GiB, and [\d.]+ GiB are free \(.*No space left on device", line)
    assert line.endswith(
        "; make room; go on from the last checkpoint, if there is one, with --resume"
    )
    assert [*files.saved_steps(stopped)] == [2, 4]
    assert {n: contents(stopped / n) for n in saved} == saved
    assert train.main(["--resume", str(stopped)]) == 0
    same_run(stopped, straight["quiet"])


def test_two_seeds_give_two_models_and_one_seed_gives_one(tiny, straight, tmp_path):
    found = {}
    for name, seed in (("again", "0"), ("other", "1")):
        flags = tiny.flags(tmp_path / name, *FLAGS["quiet"], "--seed", seed)
        found[name] = run(tmp_path / name, flags) / "step_000006"
    same_checkpoint(found["again"], straight["quiet"] / "step_000006")
    with pytest.raises(AssertionError):
        same_checkpoint(found["other"], straight["quiet"] / "step_000006")


def test_other_weights_with_the_same_tokenizer_are_taken(tiny, tmp_path):
    init_weights(tmp_path / "w", tiny.tokenizer, seed=1)
    flags = tiny.flags(tmp_path / "out", f"--weights={tmp_path / 'w'}", "--steps=1", "--lr=0")
    found = run(tmp_path / "out", flags)
    one = load_file(found / "step_000001" / "model.safetensors")
    assert torch.equal(
        one["lm_head.weight"], load_file(tmp_path / "w/model.safetensors")["lm_head.weight"]
    )


def test_a_signal_before_the_first_step_still_saves(tiny, tmp_path, monkeypatch, capsys):
    original = qs.training.trainer.Trainer.begin

    def begin(self):
        self.stop = signal.SIGTERM
        original(self)

    monkeypatch.setattr(qs.training.trainer.Trainer, "begin", begin)
    found = run(tmp_path / "out", tiny.flags(tmp_path / "out", "--save-every", "3"), 143)
    assert (found / "step_000000" / "trainer.json").is_file()
    monkeypatch.undo()
    assert train.main(["--resume", str(found)]) == 0
    assert "resume" in capsys.readouterr().out


def test_what_a_newcomer_cannot_know_of_settings_and_text_is_said(tiny, tmp_path, capsys):
    run(tmp_path / "out", tiny.flags(tmp_path / "out", "--lr=1e-6", "--steps=1", "--eval-rows=0"))
    assert "warning: --lr 1e-06 is for billions of parameters: 14," in capsys.readouterr().out
    weights = shutil.copytree(tiny.weights, tmp_path / "weights")
    (weights / "digests.json").unlink()
    tensors = load_file(weights / "model.safetensors")
    save_file(
        {k: v * 50 if "lm_head" in k else v for k, v in tensors.items()},
        weights / "model.safetensors",
    )
    run(tmp_path / "out2", tiny.flags(tmp_path / "out2", f"--weights={weights}", "--steps=1"))
    printed = capsys.readouterr().out
    assert re.search(
        r"warning: before training the NLL is [\d.]+ nats a token, above the 5.7 of", printed
    )
    assert "--lr" not in printed


def test_the_model_and_the_data_that_are_missing_are_named_at_once(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = tiny.flags(tmp_path / "out", "--data=owm", "--weights=mistral-7b")
    err = refused(capsys, flags, "mistral-7b: expected a checkpoint", lines=4)
    assert [line.startswith(("error: mistral-7b: ", "--data owm: ")) for line in err[:2]] == [
        True
    ] * 2
    assert err[2].startswith("hf download open-web-math")
