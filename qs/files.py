"""What every writer of files shares."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qs.config import Config


def flush(path: Path) -> None:
    """Force a file or folder to the disk.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lines:
    """A file that grows by whole lines, one JSON object each; what a kill cut short goes."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                path.write_bytes(whole[0] + whole[1])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line that is there.

        Raises:
            ValueError: a line is damaged.
        """
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    found = json.loads(line)
                except ValueError:
                    found = None
                if not isinstance(found, dict):
                    raise ValueError(
                        f"{self.path}, line {number}: expected a JSON object, found {line[:40]!r}; "
                        "remove the file to start it again"
                    )
                yield found

    def keep(self, count: int) -> None:
        """Drop all but the first lines."""
        kept = b"".join(self.path.read_bytes().splitlines(keepends=True)[:count])
        aside = self.path.with_name(self.path.name + ".tmp")
        aside.write_bytes(kept)
        aside.replace(self.path)

    def add(self, some: Sequence[dict[str, Any]]) -> None:
        """Write and flush some lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in some)
        flush(self.path)


CONFIG, LOG, RESULTS = "config.json", "log.jsonl", "results.json"  # of a run
TRAINER, OPTIMIZER = "trainer.json", "optimizer.safetensors"  # of a checkpoint


def finite(value: Any) -> Any:
    """The same with null for what is not finite: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found something damaged ({error})") from None


def new_run(out: str | Path, name: str, config: Config) -> Path:
    """Make `out/name` (or `name-2`, `name-3`, ...) and write its `config.json`."""
    Path(out).mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        run = Path(out) / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir()
            break
        except FileExistsError:
            number += 1
    write_json(run / CONFIG, config.to_json())
    return run


def read_config(run: Path) -> Config:
    """Settings of a run.

    Raises:
        ValueError: not a run folder, or written by another version.
    """
    values = read_json(run / CONFIG)
    try:
        return Config.from_json(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run / CONFIG}: expected the settings of a run, found something else ({error}); is "
            f"{run} a run folder?"
        ) from None


def save_step(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make `run/step_NNNNNN` whole or not at all; `write` fills it."""
    final = run / f"step_{step:06d}"
    aside = run / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    write(aside)
    for path in aside.iterdir():
        flush(path)
    flush(aside)
    if final.exists():  # the same step of the same run: equal, and the old one is complete
        shutil.rmtree(aside)
        return final
    aside.rename(final)
    flush(run)
    return final


def saved_steps(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, the oldest first."""
    found = [p for p in Path(run).glob("step_*") if re.fullmatch(r"step_\d{6,}", p.name)]
    return dict(sorted((int(p.name.removeprefix("step_")), p) for p in found))


def newest_step(run: Path) -> Path:
    """The last complete checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    found = saved_steps(run)
    if not found:
        raise ValueError(
            f"{run}: no checkpoint (step_*/) to go on from; start the run again with "
            f"`python train.py` and the settings in {Path(run) / CONFIG}"
        )
    return found[max(found)]


def finished(run: Path) -> bool:
    """Whether a run has done all its steps and saved the last one."""
    return read_config(run).run.steps in saved_steps(run)


def add_results(run: Path, found: dict[str, Any]) -> None:
    """Write into `results.json`; what else it holds stays."""
    path = run / RESULTS
    write_json(path, (read_json(path) if path.is_file() else {}) | found)


class Log:
    """`log.jsonl`: one JSON object a line, appended and flushed as it is written."""

    def __init__(self, run: Path):
        self.path = run / LOG

    def cut(self, step: int) -> None:
        """Drop what was logged after `step`, so that a resumed log equals an uninterrupted one."""
        if not self.path.is_file():
            return
        kept = [r for r in self.records() if r.get("step", 0) <= step]
        aside = self.path.with_name(LOG + ".tmp")
        aside.write_text("".join(json.dumps(r) + "\n" for r in kept))
        flush(aside)
        aside.replace(self.path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All whole lines; a line cut short by a kill is left out."""
        found = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict):  # a number cut short is a number still
                break
            found.append(record)
        return found


def environment(device: str) -> dict[str, Any]:
    """First line of the log: what this run was made by and on."""
    try:
        done = subprocess.run(
            ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
        )
        commit = done.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
    }
