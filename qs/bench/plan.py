"""What a run would take, without running it: memory by kind, what is chosen, seconds a step.

Nothing is loaded or downloaded: of the weights only their shape is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from qs.bench.measure import matrix_rate
from qs.bench.work import SIZES
from qs.config import Config
from qs.model import folders
from qs.model.config import ModelConfig, read_model_config
from qs.quietstar.load import choose_placement
from qs.tables import Table
from qs.training.memory import GIB, MIB, Memory
from qs.training.plan import available, complaints, plan

RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, operations a second
SHARE = 0.45  # of it that a step reaches
UNITS = {"GB": 10**9, "GiB": GIB, "MiB": MIB}


def plan_table(config: Config, sizes: str) -> Table:
    """Memory of a run on device and host, what is chosen so that it fits, and seconds a step.

    Args:
        config: of the run; its data need not be there, nor weights that have a known shape.
        sizes: of a machine with a GPU, as `memory_sizes` reads them; "": this machine.

    Raises:
        ValueError: sizes that cannot be read, or weights of which no shape is known.
    """
    placement = choose_placement(config.run, there=True if sizes else None)
    device, host = memory_sizes(sizes) if sizes else available(placement.device)
    planned = plan(config, shape_of(config.run.weights), placement, device, host)
    cpu = placement.device.type == "cpu"
    columns = {"host": planned.device} if cpu else {"device": planned.device, "host": planned.host}
    unit = "GiB" if planned.device.total > GIB else "MiB"

    def row(name: str, sizes: Iterable[int | None]) -> tuple[str, ...]:
        return name, *("-" if size is None else f"{size / UNITS[unit]:,.1f}" for size in sizes)

    rows = [row(kind, (getattr(x, kind) for x in columns.values())) for kind in Memory._fields]
    rows.append(row("at the peak", (held.total for held in columns.values())))
    rows.append(row("there is", (host,) if cpu else (device, host)))
    if cpu:
        rate, said = matrix_rate(placement.device, placement.dtype), "a matrix product's rate here"
    else:
        card = torch.cuda.get_device_name() if not sizes else "H100"
        name = next((name for name in RATES if name in card), "H100")
        rate, said = RATES[name] * SHARE, f"{SHARE:.0%} of the peak of one {name}"
    total = sum(planned.flops.values())
    phases = ", ".join(f"{name} {count / total:.0%}" for name, count in planned.flops.items())
    chosen = {"--offload": planned.offload, "--recompute": planned.recompute}
    flags = [flag if on else flag.replace("--", "--no-") for flag, on in chosen.items()]
    flags.append(f"--moments {planned.moments}")
    problems = complaints(planned, device, host)
    if cpu and host is not None and planned.device.total > host:
        problems.append("use a machine with more memory, or a GPU: --plan 80GB,128GB says which")
    notes = [
        f"chosen: {' '.join(flags)} --activations {planned.activations}",
        f"scored at a time: {planned.rows} row(s), {planned.anchors} of their anchors",
        *([f"does not fit: {problem}" for problem in problems] or ["fits"]),
        f"{total / 1e12:,.2f} TFLOP a step ({phases})",
        f"about {float(f'{total / rate:.2g}'):,g} s a step at {said}"
        + ", and 1 to 3 s for the optimiser on the host" * planned.offload,
    ]
    title = f"{config.run.weights}, {config.run.batch} rows of {config.run.seq} tokens: {unit}"
    return Table(title, ("", *columns), rows, notes)


def memory_sizes(text: str) -> tuple[int, int | None]:
    """Bytes of device and, if it is given, of host memory, of text such as "80GB,128GB".

    Raises:
        ValueError: it is no such text.
    """
    size = r"(\d+(?:\.\d+)?)(GB|GiB)"
    match = re.fullmatch(f"{size}(?:,{size})?", text)
    if not match:
        raise ValueError(
            f"--plan: expected sizes of device and host memory such as 80GB,128GB, got {text!r}"
        )
    number, unit, host, host_unit = match.groups()
    device_bytes = int(float(number) * UNITS[unit])
    return device_bytes, int(float(host) * UNITS[host_unit]) if host else None


def shape_of(weights: str) -> ModelConfig:
    """The shape of a checkpoint, a run or a known name that has not been downloaded.

    Raises:
        ValueError: there is no such checkpoint and the name is not known.
    """
    if weights == "mistral-7b" and not Path("weights", weights).is_dir():
        return ModelConfig(*SIZES["7b"])
    return read_model_config(folders.resolve(weights))
