"""JSON, JSON lines, and the folder of a run, written whole or not at all.

A run is a folder with `config.json` (and `digests.json`, its digest), `run.json` (commit, versions,
device), `log.jsonl` (a line a step), `step_*/` (checkpoints) and `results.json`.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qs.atomic import flush, new_folder, refusal_told, write_bytes, write_text
from qs.config import Config
from qs.locks import LOCK, hold, make_folder
from qs.output import there
from qs.plain import digest_as_file, read_plain

BUNDLE = Path(__file__).with_name("bundle")  # in an installed wheel
HOME = BUNDLE if BUNDLE.is_dir() else Path(__file__).parents[1]  # of train.py, data/ and weights/
CONFIG, MADE, LOG, RESULTS = "config.json", "run.json", "log.jsonl", "results.json"  # of a run
DIGESTS = "digests.json"  # of a folder that we wrote
TRAINER = "trainer.json"  # of a checkpoint
# of a checkpoint: what names of files begin with that only training goes on with
OPTIMIZER, AVERAGE = ONLY_TRAINING = ("optimizer", "average")


def places(name: str | Path, kind: str | Path) -> list[Path]:
    """Folders that a name may mean: one as it is, in `kind` (data, weights), or beside train.py."""
    return [Path(name), Path(kind) / name, HOME / kind / name]


def names_in(kind: str | Path) -> list[str]:
    """Names of the folders in `kind`, here and beside train.py."""
    folders = [path for root in places("", kind)[1:] for path in root.glob("*") if path.is_dir()]
    return sorted({path.name for path in folders})


def finite(value: Any) -> Any:
    """The same with null for what is not finite: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, _json_text(value))


def _json_text(value: Any) -> str:
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"


LARGEST_JSON = 2**28  # bytes
DIGITS = 300  # of an integer at most: more is beyond what a float can hold


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text in UTF-8, a byte-order mark in front of it or not.

    Raises:
        ValueError: it is damaged, nested too deeply, or holds an integer of more than DIGITS.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_int=_integer)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def text_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Lines of UTF-8 text without their ends or a byte-order mark; only \n parts two of them.

    Raises:
        ValueError: a line is no UTF-8; it is told by its number and `name`, what they are of.
    """
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"expected text in UTF-8, found {line[error.start : error.start + 1]!r}"
            raise ValueError(f"{name}, line {number}: {found}; save it in UTF-8") from None
        yield text.removesuffix("\n").removesuffix("\r")


def read_json(path: Path, advice: str = "get the file again") -> Any:
    """Read a JSON file; `advice` says what to do where that cannot be done.

    Raises:
        ValueError: it is missing, damaged, or larger than any that is ours.
    """
    try:
        if path.is_file() and (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"{size:,} bytes")
        return parse_json(read_plain(path))
    except OSError as error:
        raise ValueError(
            f"{path}: expected a file with JSON, found: {error.strerror}; {advice}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found: {error}; {advice}") from None


def read_object(path: Path, advice: str = "get the file again") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it is missing, damaged, or holds anything else.
    """
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}; {advice}")
    return value


class JsonLines:
    """A file that grows by whole lines, one JSON object each.

    A last line that a kill cut short does not count, and goes before anything is appended.
    """

    def __init__(self, path: Path):
        self.path = path

    def records(self, pass_over_damage: bool = False) -> list[dict[str, Any]]:
        """Every whole line; none where there is no file.

        `pass_over_damage` leaves damaged lines out and says so on stderr.

        Raises:
            ValueError: a line is damaged, and is not to be passed over.
        """
        if not self.path.is_file():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        records = []
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if isinstance(record, dict):  # a number cut short is a number still
                records.append(record)
                continue
            damage = f"{self.path}, line {number}: expected a JSON object, found {line[:40]!r}"
            if not pass_over_damage:
                raise ValueError(f"{damage}; remove the file to start it again")
            print(f"{damage}; passed over", file=sys.stderr)
        return records

    def append(self, records: Sequence[dict[str, Any]], flushed: bool = True) -> None:
        """Add a line for each record at the end; `flushed` waits until the disk has them."""
        make_folder(self.path.parent)
        lines = b"".join(map(_line, records))
        with refusal_told(self.path, len(lines)), self.path.open("ab+") as file:
            self._drop_partial_line(file)
            file.write(lines)
        if flushed:
            flush(self.path)

    def rewrite(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace all lines, whole or not at all."""
        write_bytes(self.path, b"".join(map(_line, records)))

    @staticmethod
    def _drop_partial_line(file: Any) -> None:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(finite(record), allow_nan=False).encode() + b"\n"


# Runs


def new_run(out: str | Path, name: str, config: Config) -> Path:
    """Make `out/name` (or `name-2`, `name-3`, ...) and write its `config.json`, with a digest."""
    make_folder(Path(out))
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for run in (Path(out) / each for each in names):
        with contextlib.suppress(FileExistsError):
            run.mkdir()
            values = config.to_json()
            write_json(run / CONFIG, values)
            write_json(run / DIGESTS, {CONFIG: _values_digest(values)})
            return run


def _values_digest(values: Any) -> str:
    """The digest of a file that `write_json` would write: another layout changes nothing."""
    return digest_as_file(_json_text(values).encode())


def run_folder(run: Path) -> Path:
    """The same, if it is the folder of a run.

    Raises:
        ValueError: it is none; with the newest runs that there are.
    """
    if not (run / CONFIG).exists():
        found = f"no {CONFIG} in it" if run.is_dir() else "no such folder"
        others = [path.parent.name for path in sorted(Path("runs").glob(f"*/{CONFIG}"))]
        raise ValueError(
            f"{run}: expected the folder of a run, found {found}; give one of those in runs "
            f"{there(str(run), others)}"
        )
    return run


def read_config(run: Path) -> Config:
    """Settings of a run; those of earlier versions have no digest and are taken as they are.

    Raises:
        ValueError: not a run folder, written by another version, or not what training wrote.
    """
    values = read_json(run_folder(run) / CONFIG, f"is {run} a run folder?")
    try:
        config = Config.from_json(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run / CONFIG}: expected the settings of a run, found something else ({error}); is "
            f"{run} a run folder?"
        ) from None
    advice = "get the file again, or remove it if the settings are as they were"
    written = read_object(run / DIGESTS, advice) if (run / DIGESTS).is_file() else {}
    if written.get(CONFIG, digest := _values_digest(values)) != digest:
        raise ValueError(
            f"{run / CONFIG}: expected the settings that training wrote, found another value; put "
            f"it back, or begin a new run from the weights with --weights {shlex.quote(str(run))}"
        )
    return config


def save_step(run: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Make `run/step_NNNNNN` whole or not at all; `fill` writes into it."""
    final = run / f"step_{step:06d}"
    if not final.exists():  # else the same step of the same run: equal, and complete
        with new_folder(final) as folder:
            fill(folder)
    return final


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left of checkpoints; this one holds the lock of the run."""
    for path in run.glob(".step_*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_step(folder: Path) -> None:
    """Remove a checkpoint; its name first, so that a half of it never bears that."""
    aside = folder.with_name(f".{folder.name}.tmp")
    folder.rename(aside)
    shutil.rmtree(aside)


def saved_steps(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, the oldest first."""
    folders = [p for p in Path(run).glob("step_*") if re.fullmatch(r"step_\d{6,}", p.name)]
    return dict(sorted((int(p.name.removeprefix("step_")), p) for p in folders))


def newest_step(run: Path) -> Path:
    """The last complete checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    steps = saved_steps(run)
    if not steps:
        raise ValueError(
            f"{run}: no checkpoint (step_*/) to go on from; start the run again with "
            f"`python train.py` and the settings in {Path(run) / CONFIG}"
        )
    return steps[max(steps)]


def finished(run: Path) -> bool:
    """Whether a run has done all its steps and saved the last one."""
    return read_config(run).run.steps in saved_steps(run)


def read_results(run: Path) -> dict[str, Any]:
    """What a run's `results.json` holds; nothing where there is none."""
    path = run / RESULTS
    return read_object(path, "move it away") if path.is_file() else {}


def add_results(run: Path, results: dict[str, Any], part: str = "") -> None:
    """Write into `results.json`, or an object of that name in it; what else it holds stays.

    Raises:
        ValueError: something else is there.
    """
    path = run / RESULTS
    with hold(run / f".{RESULTS}{LOCK}", wait=True):
        before = read_results(run)
        if part:
            if not isinstance(inner := before.get(part, {}), dict):
                found = str(inner)[:40]
                raise ValueError(f"{path}: expected {part} by name, found {found}; move it away")
            results = {part: inner | results}
        write_json(path, before | results)


def made_by(run: Path) -> dict[str, Any]:
    """What a run was begun by and on; of old runs, whose log begins with it, from there."""
    if (run / MADE).is_file():
        return read_object(run / MADE, "move it away")
    first = JsonLines(run / LOG).records(pass_over_damage=True)[:1]
    return first[0] if first and _tells_of_the_run(first[0]) else {}


def _tells_of_the_run(record: dict[str, Any]) -> bool:
    return not record.keys() & {"step", "round"}


def read_log(run: Path) -> list[dict[str, Any]]:
    """A line a step, or a round, of a run's log; damaged ones are named on stderr and left out."""
    records = []
    for record in JsonLines(run / LOG).records(pass_over_damage=True):
        if type(step := record.get("step", 0)) is not int:
            print(f"{run / LOG}: expected a step, found {step!r}; passed over", file=sys.stderr)
        elif not _tells_of_the_run(record):
            records.append(record)
    return records
