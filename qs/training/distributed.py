"""Several processes (torchrun), each with a share of every batch and of every parameter (FSDP2).

    torchrun --nproc-per-node 8 train.py --data owm --weights mistral-7b --batch 8

Each rank takes its rows of the global batch, sums are divided by counts of the whole batch, and
random numbers are those of one process: the number of ranks changes nothing but speed and memory.
Without torchrun there is one rank and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qs.training.heartbeat import AGAIN, Heartbeat


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `count`, `local` on its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


ALONE = Ranks()
LAUNCHERS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # their counts
# what gloo and NCCL say where a process is gone
LOST = re.compile("(?i)connection (closed|reset|refused)|timed out|timeout|broken pipe|nccl|gloo")
_heartbeats: list[Heartbeat] = []  # of this process: one while it is among others
# The longest wait is that for the first rank to write one file of a checkpoint, 2 GiB or a tensor.
PATIENCE = datetime.timedelta(hours=1)


def launched() -> int:
    """How many processes a launcher says that it started; 1 where there is none."""
    sizes = [os.environ.get(name, "") for name in LAUNCHERS]
    return max(int(size) if size.isdecimal() else 1 for size in sizes)


def leads() -> bool:
    """Whether this process is the first of all, as its launcher says, before they meet."""
    return os.environ.get("RANK", "0") == "0"


def start(device: torch.device) -> Ranks:
    """Join the processes that torchrun, or another launcher, started, if one did.

    Args:
        device: where tensors will live; decides NCCL or gloo, and each rank's CUDA device.

    Raises:
        ValueError: there are others, and nothing says how to meet them.
    """
    here = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= here.keys():
        if (count := launched()) > 1:
            raise ValueError(
                f"a launcher started {count} processes ({' or '.join(LAUNCHERS)} says so), but "
                "RANK, WORLD_SIZE and MASTER_ADDR are not all set: each would train a copy of its "
                "own; start them with torchrun, or unset that variable for one process"
            )
        return ALONE
    place = here.get("LOCAL_RANK", here.get("SLURM_LOCALID", here["RANK"]))
    ranks = Ranks(int(here["RANK"]), int(here["WORLD_SIZE"]), int(place))
    here.setdefault("MASTER_PORT", "29500")
    if device.type == "cuda":
        torch.cuda.set_device(ranks.local)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    _heartbeats.append(Heartbeat(ranks.rank, ranks.count))
    return ranks


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    """What an operation of several processes ends with where one is gone, in words.

    Raises:
        ValueError: instead of the RuntimeError of gloo or NCCL.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not LOST.search(str(error)):
            raise
        rank, count = dist.get_rank(), dist.get_world_size()
        said = str(error).splitlines()[0][-200:]
        raise ValueError(
            f"rank {rank} of {count}: another rank has ended or is out of reach ({said}); what "
            f"ended it stands above, if it said so; {AGAIN}"
        ) from None


def finish() -> None:
    """Leave the other processes."""
    while _heartbeats:
        _heartbeats.pop().stop()
    if dist.is_initialized():
        gc.collect()  # gloo's threads do not survive a group that only the end of Python lets go
        dist.destroy_process_group()


def shard(
    module: nn.Module, layers: Iterable[nn.Module], dtype: torch.dtype, methods: Iterable[str] = ()
) -> None:
    """Split every parameter over the ranks, gathered layer by layer while it is needed.

    Args:
        module: the root, one call of which is one training step.
        layers: submodules that are gathered on their own.
        dtype: that layers are gathered in; gradients are summed in float32.
        methods: names of the root's methods that run its layers besides `forward`.
    """
    if not dist.is_initialized():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    kind = "cuda" if torch.cuda.is_available() and dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)
    for name in methods:
        register_fsdp_forward_method(module, name)


@contextlib.contextmanager
def gathered(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Keep layers whole once they are gathered: a thought runs them once for each token."""
    if not dist.is_initialized():
        yield
        return
    layers = list(layers)
    for layer in layers:
        layer.set_reshard_after_forward(False)
    yield
    for layer in layers:
        layer.set_reshard_after_forward(True)
        layer.reshard()


def total(x: Tensor) -> Tensor:
    """Sum over all ranks."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


def anywhere(holds: bool) -> bool:
    """Whether something holds on any rank; all ranks must ask, and are told the same."""
    if not dist.is_initialized():
        return holds
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return bool(total(torch.tensor(int(holds), device=device)))


def from_first(text: str) -> str:
    """The text of the first rank, of which 4 KiB are told."""
    if not dist.is_initialized():
        return text
    letters = text.encode()[:4096].ljust(4096, b"\0")
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    told = torch.frombuffer(bytearray(letters), dtype=torch.uint8).to(device)
    dist.broadcast(told, 0)
    return bytes(told.tolist()).rstrip(b"\0").decode(errors="ignore")


def whole(x: Tensor) -> Tensor:
    """A parameter, gradient norm or optimiser state in full; every rank must take part."""
    return x.full_tensor() if is_split(x) else x


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over ranks, or the tensor."""
    return x.to_local() if is_split(x) else x


def fill(x: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into one that may be spread over ranks: of each rank its own part."""
    if is_split(x):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values, x.device_mesh, x.placements, src_data_rank=None)
    local(x).copy_(local(values))


def is_split(x: Tensor) -> bool:
    """Whether a tensor is spread over ranks; nothing is loaded to find that there is one rank."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)
