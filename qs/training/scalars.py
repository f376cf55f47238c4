"""The numbers of a run's log for TensorBoard, where that is asked for."""

from typing import Any

Writer = Any  # torch.utils.tensorboard's, which may be absent


def find_writer() -> type[Writer]:
    """PyTorch's SummaryWriter.

    Raises:
        ValueError: TensorBoard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "expected TensorBoard for --tensorboard, found none; run pip install -e "
            "'.[tensorboard]'"
        ) from None
    return SummaryWriter


def write_scalars(writer: Writer, record: dict[str, Any]) -> None:
    """Write every number of a step's record under its name in the log."""
    for name, value in record.items():
        if name != "step" and isinstance(value, int | float):
            writer.add_scalar(name, value, record["step"])
