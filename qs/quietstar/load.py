"""From settings and folders to a model that is ready to run: device, dtype, weights, tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qs import files
from qs.config import Config, RunConfig, ThoughtConfig
from qs.digests import check_digests
from qs.model import folders
from qs.model.config import ModelConfig
from qs.model.exact import Exact
from qs.model.mistral import Mistral
from qs.model.tokenizer import Tokenizer
from qs.model.weights import check_shapes, holds_thoughts, load_into, stored_tensors
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.attention import check_flex
from qs.quietstar.parts import Parts, check_own
from qs.quietstar.shape import read
from qs.quietstar.stored import STORED, stored_settings

THOUGHT_VECTORS = {"start", "end", "end_output"}  # stored divided by --embedding-scale


WEIGHTS = {
    None: "bfloat16 weights",
    "device": "bfloat16 weights with float32 masters",
    "host": "float32 masters and moments in host memory",
    "halves": "bfloat16 weights with 16 bits more, 8-bit moments",
}


@dataclass(frozen=True)
class Placement:
    """Where and how to compute.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of the arithmetic, and of the matrices of the layers if `narrow`; others are float32.
        compile: torch.compile every layer.
        attention: realisation of the visibility rule in the packed pass.
        narrow: keep the matrices of the layers in `dtype`, not in float32 to be cast on each use.
        masters: where training keeps float32 copies: on the "device" of those matrices, on the
            "host" of all parameters, or (None) of none; "halves": on the device, as 16 bits that
            those matrices lack.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool
    attention: str
    narrow: bool = False
    masters: str | None = None

    def __str__(self) -> str:
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else "CPU"
        return (
            f"{name}, {str(self.dtype).removeprefix('torch.')} arithmetic, "
            f"{WEIGHTS[self.masters] if self.narrow else 'float32 weights'}, "
            f"{self.attention} attention, {'compiled' if self.compile else 'eager'}"
        )

    def for_training(self, offload: bool, alone: bool, eight_bits: bool = False) -> Placement:
        """The same with float32 copies of what is narrow, which are what is trained.

        Args:
            offload: in host memory, of all parameters.
            alone: whether this is the only process; several share float32 weights among them.
            eight_bits: moments have them, and there is no room for copies.
        """
        if not alone:
            return dataclasses.replace(self, narrow=False)
        where = "halves" if eight_bits else "host" if offload else "device"
        return dataclasses.replace(self, masters=where)


def choose_placement(config: RunConfig, there: bool | None = None) -> Placement:
    """Decide device, dtype and kernels; the caller prints the choice.

    Args:
        config: what is asked for.
        there: whether there is a CUDA device; None: whether PyTorch sees one.

    Raises:
        ValueError: CUDA asked for where there is none.
    """
    there = torch.cuda.is_available() if there is None else there
    if config.device == "cuda" and not there:
        raise ValueError(
            f"--device cuda: this machine shows no CUDA device to PyTorch {torch.__version__}; "
            "use --device cpu, or install a CUDA build of PyTorch"
        )
    cuda = there if config.device == "auto" else config.device == "cuda"
    own = "bfloat16" if cuda else "float32"
    dtype = getattr(torch, own if config.dtype == "auto" else config.dtype)
    compiled = cuda if config.compile is None else config.compile
    return Placement(
        device=torch.device("cuda" if cuda else "cpu"),
        dtype=dtype,
        compile=compiled,
        attention="flex" if cuda and compiled else "structured",
        narrow=dtype == torch.bfloat16,
    )


def load(
    folder: Path,
    settings: Config,
    placement: Placement,
    parts: Parts = Parts(),  # noqa: B008
) -> tuple[QuietStar, Tokenizer]:
    """Read a checkpoint (Hugging Face, Mistral's own, or Quiet-STaR) into a QuietStar.

    Vectors and mixing head are taken from the checkpoint if it has them and made new otherwise
    (from --start-text, --end-text and --seed). Stored vectors are rescaled if --embedding-scale
    differs from the checkpoint's; an output vector of `<end>` is left alone with --end fixed.

    Raises:
        ValueError: the checkpoint is damaged or not finite, does not fit (see `read`), its
            mixing head was trained for another mixing, or it needs parts that are not given.
    """
    check_digests(folder)
    config = settings.thinking
    shape, tokenizer = read(folder, settings)
    check_shapes(folder, shape)
    quiet = allocate(shape, settings, placement, parts)
    check_own(folder, quiet)
    model, masters = quiet.model, quiet.masters
    extras = {n: p.data for n, p in quiet.named_parameters() if not n.startswith("model.")}
    targets = {n: masters.get(f"model.{n}", p.data) for n, p in model.named_parameters()}
    stored = stored_settings(folder)
    own = dict(extras)  # of which the checkpoint has numbers, if it has any
    if stored.get("end") != "drawn":
        own.pop("end_output", None)
    thinks = load_into(folder, targets, own)
    for name, parameter in model.named_parameters():
        if isinstance(master := masters.get(f"model.{name}"), Tensor):
            parameter.data.copy_(master)
    if thinks:
        published = dataclasses.asdict(ThoughtConfig())
        trained = {key: stored.get(key, published[key]) for key in STORED}
        for key in ("mix_weight", "mix_space"):
            if trained[key] != getattr(config, key):
                raise ValueError(
                    f"{folder}: its mixing head was trained with --{key.replace('_', '-')} "
                    f"{trained[key]}, got {getattr(config, key)}"
                )
        for name in THOUGHT_VECTORS & own.keys():
            own[name].mul_(trained["embedding_scale"] / config.embedding_scale)
    for name in THOUGHT_VECTORS & (extras.keys() - own.keys() if thinks else extras.keys()):
        text = config.start_text if name == "start" else config.end_text
        begin_vector(quiet, name, first_tokens(tokenizer, text))
    for name in extras.keys() & masters.keys():
        masters[name].copy_(extras[name])
    return quiet, tokenizer


@torch.no_grad()
def begin_vector(quiet: QuietStar, name: str, ids: list[int]) -> None:
    """Begin one of THOUGHT_VECTORS from the mean embedding of some tokens (of `---`).

    The output vector of `<end>` begins from theirs: it is drawn as often as its text.
    """
    model = quiet.model
    rows = model.head if name == "end_output" else model.tok_embeddings.weight
    getattr(quiet, name).copy_(rows[ids].mean(0) / quiet.config.embedding_scale)


def allocate(
    shape: ModelConfig,
    settings: Config,
    placement: Placement,
    parts: Parts = Parts(),  # noqa: B008
) -> QuietStar:
    """A module on its device, compiled if it shall be, whose model holds arbitrary numbers.

    The mixing head is new, from --seed. Masters have room.

    Raises:
        ValueError: FlexAttention has no kernel for the model's heads.
    """
    run = settings.run
    if placement.attention == "flex":
        check_flex(shape.head_dim)
    with torch.device("meta"):
        model = Mistral(shape, placement.dtype, bool(run.recompute))
        if placement.narrow:
            model.narrow()  # before memory is taken
    model.to_empty(device=placement.device)
    if placement.narrow:  # new parameters
        model.narrow(torch.bfloat16 if placement.masters == "halves" else torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed % 2**64)  # what PyTorch takes
        quiet = QuietStar(model, settings.thinking, placement.attention, run.pauses, parts)
        quiet.to(placement.device)
    quiet.masters = make_masters(quiet, placement)
    if placement.device.type == "cuda":  # of products of float32 numbers: see `products.product`
        bf16 = placement.dtype == torch.bfloat16
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    if placement.compile:
        # one graph for each pass (text, sampling, packed) and shape; never on without one
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        model.compiled = True
        for layer in model.layers:
            layer.compile(dynamic=False)
    return quiet


@contextlib.contextmanager
def eager(quiet: QuietStar) -> Iterator[None]:
    """Without compiled layers, for passes whose shape comes once: compiling takes longer."""
    compiled, attention = quiet.model.compiled, quiet.attention
    if not compiled:
        yield
        return
    quiet.model.compiled, quiet.attention = False, "structured"
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        quiet.model.compiled, quiet.attention = compiled, attention


def make_masters(quiet: QuietStar, placement: Placement) -> dict[str, Tensor | Exact]:
    """Room for the float32 values of parameters, by name."""
    if placement.masters is None:
        return {}
    if placement.masters == "halves":
        narrow = {n: p.data for n, p in quiet.named_parameters() if p.dtype == torch.bfloat16}
        return {n: Exact(x, torch.empty_like(x, dtype=torch.int16)) for n, x in narrow.items()}
    host = placement.masters == "host"
    device = torch.device("cpu") if host else placement.device
    return {
        name: torch.empty(p.shape, dtype=torch.float32, device=device)
        for name, p in quiet.named_parameters()
        if host or p.dtype != torch.float32
    }


def first_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a short text, without the bare space that sentencepiece may put before it.

    Raises:
        ValueError: the text has no tokens.
    """
    ids = tokenizer.encode(text)
    ids = [i for i in ids if tokenizer.decode([i]).strip()] or ids
    if not ids:
        raise ValueError("--start-text and --end-text must not be empty")
    return ids


ROWS = 32  # of held-out text, where neither a flag nor a run says how many


class Opened(NamedTuple):
    """A model that is ready, and where it came from.

    Attributes:
        folder: of the checkpoint.
        run: the run folder that holds it, if any.
        config: settings it is measured with.
        placement: device, dtype and kernels.
        quiet: the module.
        tokenizer: that goes with it.
    """

    folder: Path
    run: Path | None
    config: Config
    placement: Placement
    quiet: QuietStar
    tokenizer: Tokenizer

    @property
    def thinks(self) -> bool:
        """Whether it thinks by itself: that is what it was trained to do."""
        return self.config.run.thinks and holds_thoughts(stored_tensors(self.folder))

    @property
    def unasked(self) -> Config:
        """Settings to measure it with unasked: without thoughts, if it was not trained to think."""
        return self.config if self.thinks else self.config.changed(objective="plain")


def open_model(
    model: str,
    reads: bool = False,
    parts: Parts = Parts(),  # noqa: B008
    **settings: object,
) -> Opened:
    """Load a run or a checkpoint with its own settings.

    Args:
        model: a run, a checkpoint folder, or a name in weights/.
        reads: whether held-out text will be read, of ROWS rows where no number is given.
        parts: of one's own.
        settings: fields of `ThoughtConfig` and `RunConfig` to use instead of its own (None: its
            own), such as `thoughts=4, device="cpu"`.

    Raises:
        ValueError: it is none, it has no text to read, or it does not fit what was asked.
    """
    changes = {name: value for name, value in settings.items() if value is not None}
    folder = folders.resolve(model)
    home = folder.parent if (folder / files.TRAINER).is_file() else None
    if home and not any((home / name).exists() for name in (files.CONFIG, files.LOG)):
        home = None  # a checkpoint that was copied or moved out of its run
    if reads and home is None and "data" not in changes:
        raise ValueError(f"{folder} is no run, so give --data: a name in data/ or a folder")
    config = files.read_config(home) if home else Config()
    kept = {} if home else stored_settings(folder)
    # nothing is trained here: settings that only training could not use are no error
    own = {"beta": 0.0, "eval_rows": config.run.eval_rows or ROWS}
    config = config.changed(**own | kept | changes)
    placement = choose_placement(config.run)
    quiet, tokenizer = load(folder, config, placement, parts)
    if changes := tokenizer.changes():
        print(f"warning: {changes}", file=sys.stderr)
    return Opened(folder, home, config, placement, quiet, tokenizer)
