"""package: an installed wheel trains what it carries, and a clone named qs hides no package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tiny import ROOT, only

pytest.importorskip("pip")
SOURCES = ["qs", "data/tiny", "weights/tiny", "weights/sums"]
SOURCES += ["train.py", "evaluate.py", "pyproject.toml"]
SOURCES += ["README.md", "LICENSE"]
STEP = ["--steps=1", "--batch=1", "--seq=16", "--eval-rows=0", "--grad-norms-every=0"]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command says, which must succeed, without this checkout on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> None:
    build = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run(sys.executable, "-m", "pip", *words, *build, cwd=cwd)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of this project in a folder named qs."""
    folder = tmp_path_factory.mktemp("home") / "qs"
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    return folder


def fresh(folder: Path, clone: Path, *words: str | Path) -> Path:
    """The commands of an environment of its own, to which `pip install` added the package.

    It borrows the packages that qs needs from this one.
    """
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", python, "install", *words, cwd=clone.parent)
    return folder / "bin"


def test_a_wheel_trains_and_thinks_with_what_it_carries(clone, tmp_path):
    pip("wheel", clone, "--wheel-dir", tmp_path, cwd=tmp_path)
    (wheel,) = tmp_path.glob("qs-*.whl")
    commands = fresh(tmp_path / "env", clone, wheel)
    assert {f"qs-{name}" for name in ("train", "evaluate", "data", "model", "bench")} <= set(
        os.listdir(commands)
    )
    run(commands / "qs-train", *STEP, cwd=clone.parent)  # where there is a folder named qs
    made = only(clone.parent / "runs")
    assert made.name.endswith("-quiet-tiny")
    code = (
        f"import qs; model = qs.load({str(made)!r}, fixed_weight=1.0); print(qs.__file__); "
        "print(len(model.think('71600')), qs.load('tiny', thoughts=2).opened.folder)"
    )
    place, thoughts = run(commands / "python", "-c", code, cwd=clone.parent).splitlines()
    assert Path(place).is_relative_to(tmp_path / "env")
    assert thoughts == f"4 {Path(place).parent / 'bundle' / 'weights' / 'tiny'}"
    said = subprocess.run([commands / "qs-train", "--stepz=1"], capture_output=True, text=True)
    assert "see qs-train --help" in said.stderr
    shutil.rmtree(clone.parent / "runs")


def test_a_clone_named_qs_hides_no_package_in_the_folder_above_it(clone, tmp_path):
    commands = fresh(tmp_path / "env", clone, "--editable", clone)
    code = "import qs; from qs.data import resolve_data; print(qs.__file__, resolve_data('tiny'))"
    found = run(commands / "python", "-c", code, cwd=clone.parent).split()
    assert found == [str(clone / "qs" / "__init__.py"), str(clone / "data" / "tiny")]
    run(commands / "qs-data", "--help", cwd=clone.parent)
    run(commands / "python", "-m", "qs.data", "--help", cwd=clone.parent)
