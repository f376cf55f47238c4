"""Damage: a file that changed by itself is named or made up for; never is something else read."""

from __future__ import annotations

import random
import shutil

import pytest
from faulty import damage, one_line
from tiny import log, run, tensors, train

import evaluate
from qs import files

FLAGS = ["--save-every=1", "--eval-rows=1", "--steps=3", "--keep=3"]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return run(out, tiny.flags(out, *FLAGS))


def begun(straight, folder):
    """The run without its last step and what was found after it."""
    copy = shutil.copytree(straight, folder)
    shutil.rmtree(copy / "step_000003")
    (copy / "results.json").unlink()
    return copy


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_a_run_with_a_damaged_step_goes_on_to_the_same_or_is_refused(
    straight, tmp_path, capsys, count
):
    numbers, ends = random.Random(count), {0: 0, 2: 0}
    for number in range(count):
        copy = begun(straight, tmp_path / str(number))
        step = copy / f"step_00000{numbers.choice([1, 2, 2, 2])}"
        path = numbers.choice(sorted(x for x in step.iterdir() if x.is_file()))
        what = damage(path, numbers)
        status = train.main(["--resume", str(copy)])
        said = capsys.readouterr().err
        one_line(status, said)
        ends[status] += 1
        if status == 0:
            found, expected = (tensors(x / "step_000003") for x in (copy, straight))
            assert all(found[n].equal(expected[n]) for n in expected), (what, said)
            assert log(copy) == log(straight), (what, said)
        shutil.rmtree(copy)
    assert ends[0] > count / 2, ends


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_weights_or_data_are_read_as_they_were_or_refused(
    straight, tiny, tmp_path, capsys, count
):
    numbers = random.Random(count)
    step, data = shutil.copytree(straight / "step_000003", tmp_path / "step"), tmp_path / "data"
    shutil.copytree(tiny.data, data)

    def score() -> tuple[int, str, str]:
        words = ["score", str(step), "--device=cpu", "--rows=1", "--seq=16", f"--data={data}"]
        status = evaluate.main(words)
        return status, *capsys.readouterr()

    expected = score()[1]
    for _ in range(count):
        folder, source = numbers.choice([(step, straight / "step_000003"), (data, tiny.data)])
        path = numbers.choice(sorted(x for x in folder.iterdir() if x.is_file()))
        what = damage(path, numbers)
        status, told, said = score()
        one_line(status, said)
        assert status or told == expected or path.name == "trainer.json", (what, told, said)
        shutil.copy(source / path.name, path)
    assert score()[1] == expected


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_log_loses_its_damaged_lines_alone(straight, tmp_path, capsys, count):
    numbers = random.Random(count)
    for number in range(count):
        copy = begun(straight, tmp_path / str(number))
        lines = (copy / files.LOG).read_bytes().splitlines(keepends=True)
        which = numbers.randrange(1, 3)  # of steps 1 and 2
        lines[which] = lines[which][: numbers.randrange(1, len(lines[which]) - 1)] + b"\n"
        (copy / files.LOG).write_bytes(b"".join(lines))
        status = train.main(["--resume", str(copy)])
        one_line(status, capsys.readouterr().err)
        if status == 0:
            kept = [x for i, x in enumerate(log(straight)) if i != which]
            assert log(copy) in (kept, log(straight))
        shutil.rmtree(copy)
