"""How a wheel gets the scripts and what is bundled, in `qs/bundle/`; read by setuptools alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

BUNDLE = ("train.py", "evaluate.py", "data/tiny", "weights/tiny", "weights/sums")


class Wheel(build_py):
    """An editable installation needs no copies: it finds all of it beside the package."""

    def run(self) -> None:
        super().run()
        for file in () if self.editable_mode else bundled():
            target = Path(self.build_lib, "qs", "bundle", file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


class Source(sdist):
    """A source archive from which the same wheel is built."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, sorted({*files, *map(str, bundled())}))


def bundled() -> list[Path]:
    """Every file of BUNDLE, relative to the repository, in which setuptools runs."""
    found = [file for name in BUNDLE for file in (Path(name), *sorted(Path(name).rglob("*")))]
    return [file for file in found if file.is_file()]
