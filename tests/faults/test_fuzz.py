"""Fuzz: whatever a file of a run, a model or a person holds, a command ends in one line or well."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from faulty import ABSURD, damage, mutated, one_line
from tiny import run, train

import evaluate
from qs.data import __main__ as data

FLAGS = ["--save-every=1", "--eval-rows=1", "--steps=2"]
SUMS = ["arithmetic", "--limit=1", "--samples=1", "--thoughts=1", "--device=cpu"]
COUNTS = [40, pytest.param(5000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    found = run(out, tiny.flags(out, *FLAGS))
    assert evaluate.main(["tasks", str(found), *SUMS]) == 0
    return found


def ends(capsys, main, words, what) -> None:
    try:
        status = main(list(map(str, words)))
    except BaseException as error:
        raise AssertionError(f"{what}: {error!r}") from error
    one_line(status, capsys.readouterr().err)


def change(path, numbers: random.Random) -> str:
    """Mutate what JSON a file holds, or a line of it; or damage its bytes."""
    if numbers.random() < 0.2:
        return damage(path, numbers)
    lines = [json.loads(x) for x in path.read_text().splitlines()] if "jsonl" in path.name else None
    value = json.loads(path.read_text()) if lines is None else lines
    changed = mutated(value, numbers)
    if lines is None or not isinstance(changed, list):
        path.write_text(json.dumps(changed))
    else:
        path.write_text("".join(json.dumps(x) + "\n" for x in changed))
    return f"{path.name}: {json.dumps(changed)[:2000]}"


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_runs_and_models(trained, tmp_path, capsys, count):
    numbers, copy = random.Random(count), tmp_path / "run"
    for _ in range(count):
        shutil.copytree(trained, copy)
        name, words = numbers.choice(
            [
                ("config.json", ["--resume", copy]),
                ("log.jsonl", ["--resume", copy]),
                ("before.json", ["--resume", copy]),
                ("results.json", ["--resume", copy]),
                ("step_000001/trainer.json", ["--resume", copy]),
                ("step_000001/config.json", ["--resume", copy]),
                ("results.json", ["tasks", copy, *SUMS]),
                ("step_000002/config.json", ["score", copy, "--rows=1", "--device=cpu"]),
                ("step_000002/config.json", ["score", copy / "step_000002", "--rows=1"]),
            ]
        )
        if words[0] == "--resume" and numbers.random() < 0.8:
            shutil.rmtree(copy / "step_000002")
            (copy / "results.json").write_text("{}")
        what = change(copy / name, numbers)
        ends(capsys, train.main if words[0] == "--resume" else evaluate.main, words, what)
        shutil.rmtree(copy)


@pytest.mark.parametrize("count", COUNTS)
def test_answers(trained, tmp_path, capsys, count):
    numbers = random.Random(count)
    (path,) = trained.glob("arithmetic-*.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(count):
        shutil.copy(path, out)
        what = change(out / path.name, numbers)
        ends(capsys, evaluate.main, ["tasks", trained, *SUMS, f"--out={out}"], what)


@pytest.mark.parametrize("count", COUNTS)
def test_documents(tiny, tmp_path, capsys, count):
    numbers, source = random.Random(count), tmp_path / "source.jsonl"
    words = ["prepare", source, f"--tokenizer={tiny.tokenizer}", "--workers=1", "--heldout=0.5"]
    for _ in range(count):
        lines = [{"text": numbers.choice(["a", "b c", "\u2028", "x" * 99, *ABSURD])} for _ in "abc"]
        source.write_text("".join(json.dumps(x) + "\n" for x in lines))
        what = change(source, numbers)
        ends(capsys, data.main, [*words, f"--out={tmp_path / 'd'}"], what)
        if (tmp_path / "d").exists():
            shutil.rmtree(tmp_path / "d")


@pytest.mark.parametrize("count", COUNTS)
def test_questions_and_prompts(trained, tmp_path, capsys, count):
    numbers, path = random.Random(count), tmp_path / "gsm8k" / "test.jsonl"
    path.parent.mkdir()
    for _ in range(count):
        path.write_text('{"question": "1 + 1?", "answer": "so\\n#### 2"}\n' * 2)
        what = change(path, numbers)
        asked = ["gsm8k", f"--questions={tmp_path}", f"--out={tmp_path / 'out'}", *SUMS[1:]]
        ends(capsys, evaluate.main, ["tasks", trained, *asked], what)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if numbers.random() < 0.2:
            ends(capsys, evaluate.main, ["generate", trained, path, "--max-tokens=1"], what)
