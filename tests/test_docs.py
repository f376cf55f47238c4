"""docs: what README and docs/ say is here, and prints what they show."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import ROOT

import evaluate
import train
from qs.bench import __main__ as bench
from qs.data import __main__ as data
from qs.model import __main__ as model
from qs.quietstar import QuietStar, losses

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MAINS = {
    "evaluate.py": evaluate.main,
    "train.py": train.main,
    "qs.data": data.main,
    "qs.model": model.main,
    "qs.bench": bench.main,
}
COMMANDS = {"evaluate.py", "qs.data", "qs.model"}  # whose first word is a command


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def command_lines(page: str) -> Iterator[list[str]]:
    """Words of every line on a page that runs Python, without `python` and `-m`."""
    page = page.replace("\\\n", " ")
    for line in [*re.findall(r"`(python [^`]+)`", page), *re.findall(r"^(python .*)$", page, re.M)]:
        words = shlex.split(re.sub(r"\$\([^)]*\)", "", line), comments=True)
        yield words[2:] if words[1] == "-m" else words[1:]


def blocks(kind: str) -> list[str]:
    """The blocks of a kind in README."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README.read_text(), re.M | re.S)


def test_the_first_program_prints_what_is_shown_below_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    program = blocks("python")[0]
    assert set(re.findall(r"^(?:import|from) (\S+)", program, re.M)) == {"qs"}
    (tmp_path / "program.py").write_text(program)
    runpy.run_path(str(tmp_path / "program.py"))
    assert [capsys.readouterr().out] == blocks("text")


def test_the_way_to_a_loss_and_parts_of_ones_own_are_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "program.py").write_text("".join(blocks("python")))
    names = runpy.run_path(str(tmp_path / "program.py"))
    assert names["quiet"].mixer[4].weight.grad.abs().max() > 0
    quiet, compared = names["model"].quiet, []
    assert (quiet.reward, quiet.visibility) == (names["clipped"], names["near"])

    def others(reward: torch.Tensor) -> torch.Tensor:
        compared.append(reward)
        return names["others"](reward)

    assert quiet.baseline is names["others"]
    quiet.baseline = others
    torch.nn.init.constant_(quiet.mixer[4].weight, 0.01)  # at 0, as it begins, nothing is mixed
    with quiet.with_settings(beta=1.0):
        step = quiet(names["tokens"], generator=torch.Generator().manual_seed(0))
        quiet.loss(quiet.means(step)).backward()
    assert 0 < step.weight.abs().max() <= 1
    assert 0 < step.reward.abs().max() <= quiet.config.ahead
    assert torch.equal(compared[0], step.reward)
    assert quiet.mixer[0].weight.grad.abs().max() > 0


def test_the_picture_is_what_its_program_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "algorithm.py"))["page"]()
    assert drawn == (ROOT / "docs" / "algorithm.svg").read_text(encoding="utf-8")


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 260


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    page = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if heading else []
        plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]  # as GitHub makes them
        assert not heading or heading in [title.replace(" ", "-") for title in plain], link


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_are_here(path):
    page = path.read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w/.])((?:qs|tests|docs)/[\w/-]+(?:\.\w+)?)", page)
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_functions_that_are_named_are_here(path):
    for place, name in re.findall(r"`(losses|QuietStar)\.(\w+)`", path.read_text(encoding="utf-8")):
        assert hasattr({"losses": losses, "QuietStar": QuietStar}[place], name), name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_flags_are_those_of_today(path, capsys):
    for program, *words in command_lines(path.read_text(encoding="utf-8")):
        if program.startswith(("docs/", "tests/")):
            assert (ROOT / program).is_file()
            continue
        if program == "qs.evaluation.harness":  # its flags are those of lm-evaluation-harness
            continue
        command = words[:1] if program in COMMANDS else []
        with pytest.raises(SystemExit) as left:
            MAINS[program]([*command, "--help"])
        assert left.value.code == 0
        known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known, (program, words)
