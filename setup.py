"""Put the scripts and what is bundled into a wheel, in `qs/bundle/`; the rest: pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLE = ["train.py", "evaluate.py", "data/tiny", "weights/tiny", "weights/sums"]


class BuildWithBundle(build_py):
    """An editable installation needs no copies: it finds all of it beside the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in BUNDLE:
            source, target = Path(name), Path(self.build_lib, "qs", "bundle", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithBundle})
