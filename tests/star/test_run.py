"""star_run: a run that was stopped, wherever, equals one that was not; each round starts anew."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import weakref

import pytest
import tiny as tools
import torch
from tiny import contents, init_weights, only, tensors, train

import evaluate
import qs.star.round
import qs.star.run
from qs import files
from qs.config import Config, RunConfig, StarConfig
from qs.data import arithmetic
from qs.data.completions import Completions
from qs.model.tokenizer import train_tokenizer
from qs.presets import PRESETS
from qs.quietstar.load import choose_placement, load
from qs.star.records import rounds_table
from qs.star.run import StarRun
from qs.tables import terminal
from qs.training.distributed import LAUNCHERS
from qs.training.optimizer import make_optimizer
from qs.training.step import train_step

FLAGS = [
    *("--objective=star", "--device=cpu", "--problems=10", "--test-problems=1", "--rounds=2"),
    *("--steps=3", "--seq=144", "--batch=2", "--lr=1e-2", "--warmup=0", "--rationale-batch=4"),
    *("--rationale-tokens=4", "--rationale-temperature=1"),
]
FILES = ["examples.jsonl", "generated.jsonl", "heldout.jsonl", "rationalized.jsonl"]


class Died(Exception):
    """What a test kills a run with."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a token for every word of a sum."""
    folder = tmp_path_factory.mktemp("model")
    sums = [next(arithmetic.sums(i, "train", 1 + i % 3)) for i in range(60)]
    texts = [arithmetic.prompt(x) + arithmetic.scratchpad(x) for x in sums]
    train_tokenizer(texts, folder, 294, symbols=arithmetic.SYMBOLS)
    init_weights(folder / "weights", folder, positions=160)
    return folder / "weights"


def rig(monkeypatch):
    """Right scratchpads for a third of the sums and, with a hint, for half of the others.

    For all others the model speaks: so attempts depend on it.
    """
    write = qs.star.round.write

    def rigged(quiet, tokenizer, prompts, *others, **more):
        written = write(quiet, tokenizer, prompts, *others, **more)
        for i, prompt in enumerate(prompts):
            form = r"Input:\n([\d ]+) \+ ([\d ]+)\nTarget:(.*)\n$"
            a, b, hint = re.search(form, tokenizer.decode(prompt)).groups()
            one = arithmetic.Sum(*(int(x.replace(" ", "")) for x in (a, b)))
            if (one.a + 2 * one.b) % 3 == 0 or (hint and one.a % 2):
                written[i] = written[i]._replace(text=arithmetic.scratchpad(one))
        return written

    monkeypatch.setattr(qs.star.round, "write", rigged)


def flags(model, out, *more):
    return [*FLAGS, f"--weights={model}", f"--out={out}", *more]


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """A run of two rounds that was never stopped."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        rig(patch)
        return tools.run(out, flags(model, out))


def timeless(record):
    return {name: value for name, value in record.items() if not name.endswith("_seconds")}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rounds(folder):
    return [timeless(record) for record in lines_of(folder / "log.jsonl")]


def written(folder):
    return {n: x for n, x in contents(folder).items() if n.startswith("round_")}


def same_run(one, other):
    """The same attempts, examples, weights and log."""
    assert written(one) == written(other)
    assert [p.name for p in one.glob("step_*")] == [p.name for p in other.glob("step_*")]
    tools.same_bits(tensors(one / "step_000002"), tensors(other / "step_000002"))
    assert rounds(one) == rounds(other)
    results = [json.loads((x / "results.json").read_text())["rounds"] for x in (one, other)]
    assert [*map(timeless, results[0])] == [*map(timeless, results[1])] == rounds(one)


def refused(capsys, arguments, message):
    """train.py ends with one clear line."""
    capsys.readouterr()
    assert train.main([str(x) for x in arguments]) == 2
    err = capsys.readouterr().err.replace("\r", "\n").strip().split("\n")[-1]
    assert err.startswith("error: ")
    assert re.search(message, err), err


# ---- a whole run ---------------------------------------------------------------------------------
def test_a_run_has_its_examples_its_table_and_only_the_last_model(straight, capsys):
    assert [p.name for p in straight.glob("step_*")] == ["step_000002"]
    assert sorted(written(straight)) == [
        "round_00/heldout.jsonl",
        *(f"round_{n:02d}/{name}" for n in (1, 2) for name in FILES),
    ]
    before, first, second = rounds(straight)
    assert before.keys() == {"round", "accuracy", "heldout_too_long"}
    assert before["heldout_too_long"] == 0
    assert list(before["accuracy"]) == [f"{d} digits" for d in range(1, 6)] + ["all"]
    for number, record in ((1, first), (2, second)):
        lines = {name: lines_of(straight / f"round_{number:02d}" / name) for name in FILES}
        made, hinted = lines["generated.jsonl"], lines["rationalized.jsonl"]
        assert record["problems"] == len(made) == 10
        assert record["kept"] == sum(x["kept"] for x in made) > 0
        assert record["rationalized"] == len(hinted) == 10 - record["kept"] > 0
        assert record["rationalized_kept"] == sum(x["kept"] for x in hinted) > 0
        assert record["examples"] == record["kept"] + record["rationalized_kept"]
        assert record["generated_tokens"] == sum(x["tokens"] for x in made + hinted)
        assert record["steps"] == [3, 4][number - 1]
        assert (record["too_long"], record["examples_too_long"], record["skipped"]) == (0, 0, 0)
        for example in lines["examples.jsonl"]:
            a, b = map(int, example["id"].split("+"))
            assert example["prompt"] == arithmetic.prompt(arithmetic.Sum(a, b))
            assert example["completion"] == arithmetic.scratchpad(arithmetic.Sum(a, b))
            target = example["made_by"].rpartition("Target:")[2]
            assert (target != "\n") == example["hint"]
        assert {x["hint"] for x in lines["examples.jsonl"]} == {False, True}
    assert (
        written(straight)["round_01/generated.jsonl"]
        != (written(straight)["round_02/generated.jsonl"])
    )
    capsys.readouterr()
    before = contents(straight)
    assert train.main(["--resume", str(straight)]) == 0  # a finished run changes nothing
    assert contents(straight) == before
    records = json.loads((straight / "results.json").read_text())["rounds"]
    table = terminal(rounds_table(records)).splitlines()
    assert "\n".join(table) in capsys.readouterr().out
    assert len({len(line) for line in table}) == 1
    assert table[2].split()[:6] == [str(first[n]) for n in ("round", "problems", "kept")] + [
        str(first[n]) for n in ("rationalized", "rationalized_kept", "steps")
    ]


def test_prompts_that_leave_no_room_are_told_and_counted(model, tmp_path, capsys):
    arguments = flags(model, tmp_path, "--shots=10")
    refused(capsys, arguments, "round 1: expected right answers to train on, found none among 10")
    assert train.main(arguments) == 2
    told = re.search(r"(\d+) of (\d+) held-out problems leave this model", capsys.readouterr().out)
    assert told[1] == told[2]
    before = rounds(sorted(tmp_path.iterdir())[-1])[0]
    assert (before["heldout_too_long"], before["accuracy"]["all"]) == (int(told[1]), 0)


def test_every_round_trains_the_original_model_on_its_examples_alone(model, straight):
    config = files.read_config(straight)
    steps = 4
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=steps))
    quiet, tokenizer = load(model, config, choose_placement(config.run))
    lines = lines_of(straight / "round_02" / "examples.jsonl")
    pairs = [(x["prompt"], x["completion"]) for x in lines]
    batches = Completions(pairs, tokenizer, 144, 0).batches(2)
    optimizer = make_optimizer(quiet, config.optim)
    tokens = 0
    for step in range(steps):
        text, documents, counted = next(batches)
        train_step(quiet, optimizer, text, documents, config, step, False, counted=counted)
        tokens += int((documents >= 0).sum())
    found = load(straight / "step_000002", config, choose_placement(config.run))[0]
    expected = dict(quiet.model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in found.model.named_parameters())
    assert rounds(straight)[2]["trained_tokens"] == tokens


def test_every_round_is_written_by_the_model_of_the_round_before(model, tmp_path, monkeypatch):
    original, models = qs.star.run.generate_rationales, []

    def generate_rationales(quiet, *arguments, **more):
        models.append(quiet.model.head.clone())
        return original(quiet, *arguments, **more)

    rig(monkeypatch)
    monkeypatch.setattr(qs.star.run, "generate_rationales", generate_rationales)
    tools.run(tmp_path, flags(model, tmp_path))
    before, written, hinted, after, again, hinted_again, last = models
    assert all(torch.equal(before, x) for x in (written, hinted))
    assert all(torch.equal(after, x) for x in (again, hinted_again))
    assert not torch.equal(before, after)
    assert not any(torch.equal(last, x) for x in (before, after))


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3]), (2, [2, 3]), (1, [3])])
def test_the_models_of_the_last_rounds_are_kept(model, tmp_path, monkeypatch, keep, left):
    rig(monkeypatch)
    found = tools.run(tmp_path, flags(model, tmp_path, "--rounds=3", f"--keep={keep}"))
    assert list(files.saved_steps(found)) == left


def test_one_model_is_held_at_a_time(model, tmp_path, monkeypatch):
    models, held = weakref.WeakSet(), []
    opened, trained = qs.star.run.load, qs.star.run.train_step
    written = qs.star.run.generate_rationales

    def counted(original):
        def wrapped(*arguments, **more):
            held.append(len(models))
            return original(*arguments, **more)

        return wrapped

    def load(*arguments):
        found = opened(*arguments)
        models.add(found[0])
        return found

    rig(monkeypatch)
    monkeypatch.setattr(qs.star.run, "load", load)
    monkeypatch.setattr(qs.star.run, "train_step", counted(trained))
    monkeypatch.setattr(qs.star.run, "generate_rationales", counted(written))
    tools.run(tmp_path, flags(model, tmp_path))
    assert held == [1] * (7 + 3 + 4)  # files of attempts, and the steps of two rounds


def test_a_run_is_evaluated_and_is_the_weights_of_another(model, straight, tmp_path, monkeypatch):
    copy = shutil.copytree(straight, tmp_path / "copy")
    sums = ["arithmetic", "--limit=1", "--samples=1", "--thoughts=1", "--device=cpu"]
    assert evaluate.main(["tasks", str(copy), *sums]) == 0
    assert evaluate.main(["tasks", str(copy), *sums[:2], "--device=cpu"]) == 0
    results = json.loads((copy / "results.json").read_text())  # asked to think, and left to itself
    assert [x["exam"]["thoughts"] for x in results["exams"].values()] == [1, 0]
    assert train.main(["--resume", str(copy)]) == 0
    again = json.loads((copy / "results.json").read_text())
    assert (again["exams"], again["rounds"]) == (results["exams"], results["rounds"])
    out = tmp_path / "next"
    found = tools.run(out, flags(copy, out, "--learn=answers", "--rounds=1", "--lr=0"))
    tools.same_bits(tensors(found / "step_000001"), tensors(copy / "step_000002"))
    assert json.loads((found / "config.json").read_text())["run"]["weights"].endswith("step_000002")


def test_a_run_without_a_text_of_its_own_says_so(straight, capsys):
    assert evaluate.main(["score", str(straight)]) == 2
    error = capsys.readouterr().err
    assert "trained on questions, and has no text to be scored on: name some that was" in error
    assert evaluate.main(["score", str(straight), "--data", "nowhere"]) == 2
    assert "--data nowhere: expected a prepared dataset" in capsys.readouterr().err


def test_the_control_trains_on_every_answer(model, tmp_path):
    out = tmp_path / "out"
    found = tools.run(out, flags(model, out, "--learn=answers", "--rounds=1"))
    record = rounds(found)[1]
    assert (record["problems"], record["examples"], record["steps"]) == (10, 10, 3)
    assert "kept" not in record
    lines = lines_of(found / "round_01" / "examples.jsonl")
    for x in lines:
        assert x["completion"] == f"{' '.join(str(sum(map(int, x['id'].split('+')))))}\n"
        assert x["made_by"] is None
    assert sorted(written(found)) == [
        *("round_00/heldout.jsonl", "round_01/examples.jsonl", "round_01/heldout.jsonl")
    ]


def test_steps_grow_by_a_fifth_each_round():
    star = PRESETS["star"]
    run = StarRun.__new__(StarRun)
    run.config = star
    assert [run.steps(n) for n in range(1, 17)] == [round(40 * 1.2**n) for n in range(16)]
    assert [run.steps(n) for n in range(1, 6)] == [40, 48, 58, 69, 83]
    run.config = Config(run=RunConfig(steps=7), star=StarConfig(growth=1.0))
    assert run.steps(9) == 7


# ---- stopped and resumed -------------------------------------------------------------------------
def after(monkeypatch, count, act):
    """Act when that many batches of attempts are made, before the last one is written."""
    original, made = qs.star.run.generate_rationales, []

    def generate_rationales(*arguments, **more):
        for batch in original(*arguments, **more):
            made.append(batch)
            if len(made) == count:
                act()
            yield batch

    monkeypatch.setattr(qs.star.run, "generate_rationales", generate_rationales)


def die():
    raise Died


# two batches of held-out sums; in each round three batches, one or two with hints, two held out
@pytest.mark.parametrize("count", [1, 2, 4, 6, 7, 9, 11, 16])
def test_a_run_that_died_anywhere_goes_on_to_the_same(
    model, straight, tmp_path, monkeypatch, count
):
    out = tmp_path / "out"
    rig(monkeypatch)
    with monkeypatch.context() as patch:
        after(patch, count, die)
        with pytest.raises(Died):
            train.main(flags(model, out))
    found = only(out)
    files = sorted(found.glob("round_*/*.jsonl"), key=os.path.getmtime)
    last = [path for path in files if path.name != "examples.jsonl"][-1:]
    for path in last:  # the last batch was half-written, and its last line cut short
        size = path.stat().st_size
        os.truncate(path, size - 7)
    with (found / "log.jsonl").open("a") as file:
        file.write('{"round": 1, "pro')
    assert train.main(["--resume", str(found)]) == 0
    same_run(found, straight)


def test_a_batch_that_was_written_in_part_is_attempted_whole_again(straight, tmp_path, monkeypatch):
    copy = shutil.copytree(straight, tmp_path / "copy")
    shutil.rmtree(copy / "step_000002")
    for path, count in (("log.jsonl", 1), ("round_01/generated.jsonl", 6)):
        lines = (copy / path).read_text().splitlines(keepends=True)
        (copy / path).write_text("".join(lines[:count]))
    original, done = qs.star.run.generate_rationales, []

    def generate_rationales(*arguments, **more):
        done.append(more["done"])
        return original(*arguments, **more)

    rig(monkeypatch)
    monkeypatch.setattr(qs.star.run, "generate_rationales", generate_rationales)
    assert train.main(["--resume", str(copy)]) == 0
    assert done[0] == 4
    same_run(copy, straight)


@pytest.mark.parametrize("step", [1, 5])
def test_training_begins_anew_where_it_was_stopped(model, straight, tmp_path, monkeypatch, step):
    out, original, done = tmp_path / "out", qs.star.run.train_step, []
    rig(monkeypatch)

    def dying(*arguments, **keywords):
        done.append(original(*arguments, **keywords))
        if len(done) == step:
            raise Died
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(qs.star.run, "train_step", dying)
        with pytest.raises(Died):
            train.main(flags(model, out))
    assert train.main(["--resume", str(only(out))]) == 0
    same_run(only(out), straight)


@pytest.mark.parametrize("log", ["whole", "cut"])
def test_a_round_whose_line_is_lost_is_only_evaluated_again(straight, tmp_path, monkeypatch, log):
    copy = shutil.copytree(straight, tmp_path / "copy")
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40] * (log == "cut"))
    (copy / "results.json").unlink()
    if log == "whole":
        (copy / "round_02" / "heldout.jsonl").unlink()
    shutil.copytree(copy / "step_000002", copy / "step_000001")  # not removed yet
    rig(monkeypatch)
    monkeypatch.setattr(qs.star.run, "train_step", None)  # neither trained nor generated again
    assert train.main(["--resume", str(copy)]) == 0
    same_run(copy, straight)


def test_no_round_is_done_again_for_a_damaged_line_before_it(straight, tmp_path, monkeypatch):
    copy = shutil.copytree(straight, tmp_path / "copy")
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    damaged = lines[0] + lines[1][:40] + "\n" + lines[2]
    (copy / "log.jsonl").write_text(damaged)
    (copy / "results.json").unlink()
    monkeypatch.setattr(qs.star.run, "generate_rationales", None)
    assert train.main(["--resume", str(copy)]) == 0
    assert (copy / "log.jsonl").read_text() == damaged
    assert [x["round"] for x in files.read_results(copy)["rounds"]] == [0, 2]


@pytest.mark.parametrize("stopped", ["evaluating round 2", "generating round 2"])
def test_a_damaged_model_of_a_round_is_trained_again(
    straight, tmp_path, monkeypatch, capsys, stopped
):
    copy = shutil.copytree(straight, tmp_path / "copy")
    (copy / "results.json").unlink()
    lines = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(lines[:-1]))
    (copy / "round_02" / "heldout.jsonl").unlink()
    newest = copy / "step_000002"
    if stopped == "generating round 2":
        newest = newest.rename(copy / "step_000001")
        (copy / "round_02" / "generated.jsonl").unlink()
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    rig(monkeypatch)
    assert train.main(["--resume", str(copy)]) == 0
    err = capsys.readouterr().err
    assert re.search(r"model.safetensors: expected .*; training round \d again", err)
    shutil.rmtree(newest.with_name(f"{newest.name}.damaged"))
    same_run(copy, straight)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_the_batch_and_says_how_to_go_on(
    model, straight, tmp_path, monkeypatch, capsys, number, status
):
    out = tmp_path / "out"
    rig(monkeypatch)
    with monkeypatch.context() as patch:
        after(patch, 4, lambda: os.kill(os.getpid(), number))
        found = tools.run(out, flags(model, out), status)
    path = found / "round_01" / "generated.jsonl"
    assert len(path.read_text().splitlines()) == 8  # two batches, the one in hand too
    *_, said, command = capsys.readouterr().out.splitlines()
    assert said == f"stopped by {signal.Signals(number).name}; what is finished is kept"
    assert command == f"go on with: python train.py --resume {found}"
    assert train.main(["--resume", str(found)]) == 0
    same_run(found, straight)


# ---- refusals ------------------------------------------------------------------------------------
def test_a_round_that_keeps_nothing_ends_in_one_line_and_what_was_written_is_there(
    model, tmp_path, capsys
):
    out = tmp_path / "out"
    message = r"round 1: expected right answers to train on, found none among 10 problems \(what"
    refused(capsys, flags(model, out), message)
    found = only(out)
    before = written(found)
    assert {n: len(x.splitlines()) for n, x in before.items()} == {
        "round_00/heldout.jsonl": 5,
        "round_01/generated.jsonl": 10,
        "round_01/rationalized.jsonl": 10,
        "round_01/examples.jsonl": 0,
    }
    assert str(found / "round_01") in message or (found / "round_01").is_dir()
    refused(capsys, ["--resume", found], message)
    assert written(found) == before


def test_attempts_of_other_problems_or_versions_are_refused(straight, tmp_path, capsys):
    for change, message in (
        *(
            (lambda x, name=name: x | {name: "1+1"}, "expected attempts at the problems of this ru")
            for name in ("id", "prompt", "gold")  # another question may have the same id
        ),
        (lambda x: x | {"new": 1}, r"generated.jsonl: 0 missing \(none\), 1 unexpected \(new\)"),
    ):
        copy = shutil.copytree(straight, tmp_path / "copy")
        shutil.rmtree(copy / "step_000002")
        log = (copy / "log.jsonl").read_text().splitlines(keepends=True)
        (copy / "log.jsonl").write_text("".join(log[:1]))
        path = copy / "round_01" / "generated.jsonl"
        first, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([json.dumps(change(json.loads(first))) + "\n", *rest]))
        refused(capsys, ["--resume", copy], message)
        shutil.rmtree(copy)


def test_held_out_problems_that_are_not_those_of_the_rounds_before_are_refused(
    straight, tmp_path, capsys
):
    copy = shutil.copytree(straight, tmp_path / "copy")
    path = copy / "round_02" / "heldout.jsonl"
    path.write_text(path.read_text().replace('"gold": "', '"gold": "1'))
    assert train.main(["--resume", str(copy)]) == 0  # it is finished
    log = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(log[:2]))
    path.rename(copy / "round_01" / "heldout.jsonl")
    shutil.rmtree(copy / "round_02")
    (copy / "step_000002").rename(copy / "step_000001")  # round 1 was the last
    refused(capsys, ["--resume", copy], "round_01/heldout.jsonl: expected attempts at the problems")
    assert not (copy / "round_02").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--task=world --problems=4", "--task world has no hints: add --no-rationalize"),
        ("--problems=0", "--task arithmetic is generated without end: give --problems"),
        ("--task=gsm8k --questions=none", "none/gsm8k/train.jsonl: expected questions of gsm8k"),
        ("--seq=161", "--seq 161 .*exceeds the 160 positions"),
        ("--rounds=0", "--rounds must be at least 1"),
        ("--growth=0.5", "--growth must be at least 1"),
        ("--weights=none", "none: expected a checkpoint, found no such folder"),
        ("--tensorboard", "--tensorboard is not of --objective star"),
        ("--compile", "--compile is not of --objective star"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_no_run_is_begun(
    model, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    refused(capsys, flags(model, tmp_path / "out", *more.split()), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_several_processes_are_refused(model, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    refused(
        capsys, flags(model, tmp_path / "out"), "runs in one process: start it without torchrun"
    )
    assert not (tmp_path / "out").exists()


def test_steps_that_are_not_finite_save_no_model(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def overflow(*arguments, **keywords):
        arguments[0].model.norm.weight.data.fill_(math.inf)
        return train_step(*arguments, **keywords)

    monkeypatch.setattr(qs.star.run, "train_step", overflow)
    refused(capsys, flags(model, out, "--learn=answers"), "round 1: .* not finite, or")
    assert not [*only(out).glob("step_*")]
