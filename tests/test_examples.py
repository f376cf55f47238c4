"""examples: every script runs as it stands, in any folder, and is short."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from tiny import ROOT, only

EXAMPLES = ROOT / "examples"
SCRIPTS = ["think", "visibility", "reward", "head"]


def said_by(name: str, folder: Path, monkeypatch, capsys) -> str:
    """What a script prints that is run in an empty folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_has_at_most_30_lines(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 30
    assert f"examples/{name}.py" in (ROOT / "README.md").read_text()


def test_a_text_is_thought_about(tmp_path, monkeypatch, capsys):
    said = said_by("think", tmp_path, monkeypatch, capsys)
    right = re.search(r"(\d) of 4 thoughts add up", said)
    assert int(right[1]) == said.split("what follows")[0].count("'78444'") > 0
    assert said.endswith("it goes on '4'\n")


def test_a_visibility_of_ones_own_is_tested(tmp_path, monkeypatch, capsys):
    said = said_by("visibility", tmp_path, monkeypatch, capsys)
    assert said == "thoughts depend on 6 tokens before them at most\n"


def test_a_reward_of_ones_own_is_trained_with(tmp_path, monkeypatch, capsys):
    said = said_by("reward", tmp_path, monkeypatch, capsys)
    rewards = [float(x) for x in re.findall(r"reward ([+-][\d.]+) nats", said)]
    assert len(rewards) == 4
    assert all(abs(reward) <= 0.1 for reward in rewards)
    assert any(rewards)
    assert (only(tmp_path / "runs") / "step_000004" / "model.safetensors").is_file()


def test_a_head_of_ones_own_is_trained_stored_and_loaded(tmp_path, monkeypatch, capsys):
    said = said_by("head", tmp_path, monkeypatch, capsys)
    learned = [float(x) for x in re.findall(r"^weight ([+-][\d.]+)", said, re.M)]
    assert len(learned) == 4
    assert learned[0] == 0 != learned[-1]
    assert len(re.findall(r"weight [+-]0\.\d\d  without", said)) == 4


def test_the_notebook_is_what_its_command_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (EXAMPLES / "first.py").read_text(encoding="utf-8")
    made = runpy.run_path(str(EXAMPLES / "notebook.py"))["notebook"](source)
    assert made == json.loads((EXAMPLES / "first.ipynb").read_text(encoding="utf-8"))
    outputs = [cell["outputs"] for cell in made["cells"] if cell["cell_type"] == "code"]
    assert list(map(bool, outputs)) == [False, True, True, True, True]


def test_a_cell_that_fails_makes_no_notebook():
    notebook = runpy.run_path(str(EXAMPLES / "notebook.py"))["notebook"]
    with pytest.raises(ZeroDivisionError):
        notebook("# %%\n1 / 0\n")
