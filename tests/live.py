"""What tensors hold, measured: the oracle of plans."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of all storages that operations made and that are not gone, real or fake.

    Attributes:
        now: at this moment.
        peak: the most so far; set it to 0 to begin again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type != "meta":
                self.add(x)
        self.peak = max(self.peak, self.now)
        return out

    def add(self, x: Tensor) -> None:
        """Count a tensor."""
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            self.sizes[key] = size
            self.now += size
            weakref.finalize(storage, self.gone, key)

    def gone(self, key: int) -> None:
        """A storage was freed."""
        self.now -= self.sizes.pop(key)
