"""Tensors in safetensors files: one file, or several and the index that says which holds what.

    STEM.safetensors
    STEM-00001-of-00003.safetensors, ..., STEM.safetensors.index.json

Written and read one tensor at a time, so that host memory holds no more than a file beside what is
held anyway.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qs.files import flush, read_object, write_json
from qs.plain import check_plain, file_digest

LARGEST = 2 * 2**30  # bytes of a file that holds more than one tensor
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored(NamedTuple):
    """A tensor in a file: where, and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, name: str) -> Tensor:
        """The tensor, mapped: only what is copied from it is read."""
        with open_file(self.file) as handle:
            return handle.get_tensor(name)


def open_file(file: Path) -> Any:
    """A memory-mapped safetensors file; `with` closes it.

    Raises:
        ValueError: it is missing or damaged, or its path is one that safetensors cannot open.
    """
    advice = "get the file again"
    try:
        check_plain(file)
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        if any("\udc80" <= character <= "\udcff" for character in str(file)):  # a byte as it is
            advice = "give what is on that path a name in UTF-8"
        raise ValueError(f"{file}: expected a safetensors file, found: {error}; {advice}") from None


def files_of(folder: Path, stem: str) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the tensors of `stem`, none if there are none; and what the index says.

    Raises:
        ValueError: the index is damaged.
    """
    single, index = (folder / f"{stem}.safetensors{end}" for end in ("", ".index.json"))
    if single.is_file():
        return [single], {}
    if not index.is_file():
        return [], {}
    listed = read_object(index).get("weight_map")
    names = listed.values() if isinstance(listed, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(
            f"{index}: expected a weight_map from tensors to names of files beside it, found "
            "something else; get the file again"
        )
    return [folder / name for name in sorted(set(names))], listed


def headers(
    files: Iterable[Path], listed: Mapping[str, str], dtypes: Mapping[str, torch.dtype] = DTYPES
) -> dict[str, Stored]:
    """Every tensor of some files by its name there.

    Args:
        files: to read, their headers only.
        listed: name of a tensor -> name of its file; copies in other files do not count.
        dtypes: that a tensor may have, by their names there.

    Raises:
        ValueError: files are missing, damaged, or hold a tensor twice or of another type.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        with open_file(file) as handle:
            for name in list(handle.keys()):
                if listed.get(name, file.name) != file.name:
                    continue
                if name in stored:
                    other = stored[name].file.name
                    raise ValueError(f"{file}: {name} is also in {other}; keep one")
                part = handle.get_slice(name)
                if (dtype := part.get_dtype()) not in dtypes:
                    raise ValueError(
                        f"{file}: expected {name} to be {', '.join(dtypes)}, found {dtype}; get a "
                        "checkpoint that is not quantised"
                    )
                stored[name] = Stored(file, tuple(part.get_shape()), dtypes[dtype])
    return stored


def write(
    folder: Path | None, stem: str, tensors: Mapping[str, Tensor], whole: Callable[[str], Tensor]
) -> None:
    """Write tensors, flushed to disk: one file if they are at most LARGEST, or else several.

    Args:
        folder: that exists; None: only take part in `whole`, which then needs several processes.
        stem: what names of files begin with.
        tensors: by name, wherever they are; only their sizes are looked at.
        whole: all of a tensor, called once for each in their order.

    Raises:
        OSError: the disk refuses.
    """
    parts: list[list[str]] = [[]]
    room = LARGEST
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and size > room:
            parts.append([])
            room = LARGEST
        parts[-1].append(name)
        room -= size
    listed, total = {}, 0
    for number, names in enumerate(parts, 1):
        one_of = f"-{number:05}-of-{len(parts):05}" if len(parts) > 1 else ""
        file = f"{stem}{one_of}.safetensors"
        listed |= dict.fromkeys(names, file)
        held = {}
        for name in names:
            tensor = whole(name)
            if folder is not None:
                held[name] = tensor.cpu().contiguous()
        if folder is not None:
            _write_file(folder / file, held)
            total += sum(tensor.nbytes for tensor in held.values())
    if folder is not None and len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_file(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, f"cannot be written: {error}", str(path)) from None
    # safetensors makes files that only their owner can read: as open to others as the folder
    path.chmod(path.parent.stat().st_mode & 0o666)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(file_digest, path)  # while memory has it and the disk is at work
        flush(path)
    digest.result()
