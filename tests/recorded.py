"""What the official Quiet-STaR code computed (tests/golden), beside our module with its weights.

Our side is float64; the recording is float32. Tensors are batch first: B rows, L positions, K
thoughts. Our deliberate differences are arguments here, so that everything else can be equal:

- visibility: the official sliding window is measured from the anchor and does not move along the
  branch; padding there sees the text before it and not itself. `official_sees` is its rule.
- rewarded: the official policy loss leaves out one more position than lack a true target.
- targets: officially, positions with some targets padded earn what the others give. They think
  apart here, judged on as many targets as they have.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.masks import Slots, every_position
from qs.quietstar.terms import Step
from qs.training.optimizer import make_optimizer
from qs.training.step import train_step

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("qs*.json"))

LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def official_name(name: str) -> str:
    """Our parameter's name in the official code."""
    if name in ("start", "end"):
        return f"{name}_embedding"
    if name.startswith("mixer."):
        return "talk_head.0." + name.removeprefix("mixer.")
    name = name.removeprefix("model.")
    if name == "output.weight":
        return "lm_head.weight"
    for ours, theirs in LAYER.items():
        name = name.replace(ours + ".", theirs + ".")
    return "model." + name.replace("tok_embeddings", "embed_tokens")


def read(stem: str) -> dict[str, Tensor]:
    """A recorded file, its numbers as float64."""
    values = load_file(FOLDER / f"{stem}.safetensors")
    return {name: x.double() if x.is_floating_point() else x for name, x in values.items()}


class Recorded:
    """One recorded case: its facts, its tensors, and our module with its weights."""

    def __init__(self, name: str, official_view: bool = False):
        self.name, self.official_view = name, official_view
        self.facts = facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.values = values = read(name)
        self.tokens = values["input_ids"]
        self.B, self.L = self.tokens.shape
        self.K, self.m = facts["n_passes"], facts["n_ahead_talk"]
        self.n = facts["n_ahead"] - 3  # start, end and the text's own pass are counted there
        self.rewarded = self.L - 1 - self.m  # positions that the official policy loss takes
        self.real = values["attention_mask"].bool()
        self.documents = values["attention_mask"] - 1  # one document a row, padding is -1
        self.text = self.tokens, self.documents
        self.window = facts["sliding_window"]
        self.thoughts = self.steps(values["thought_tokens"])
        # settings that are left alone here must be the official ones
        self.config = ThoughtConfig(
            thoughts=self.n,
            ahead=self.m,
            samples=self.K,
            baseline="mean" if self.K > 1 else "none",
        )

    def quiet(self, **settings) -> QuietStar:
        """A new module with the recorded weights, in float64."""
        facts = self.facts
        shape = ModelConfig(
            vocab_size=facts["V"],
            dim=facts["h"],
            layers=facts["layers"],
            heads=facts["heads"],
            kv_heads=facts["kv"],
            head_dim=facts["h"] // facts["heads"],
            hidden_dim=facts["inter"],
            norm_eps=facts["rms_norm_eps"],
            rope_theta=facts["rope_theta"],
            window=self.window,
            bos_id=None,  # the official sampler forbids start and end only
            thought_ids=(facts["start_id"], facts["end_id"]),
        )
        config = Config(thought=self.config).changed(**settings).thought
        quiet = QuietStar(Mistral(shape, torch.float64), config).double()
        with torch.no_grad():
            for name, parameter in quiet.named_parameters():
                parameter.copy_(self.official("w", name))
        return quiet

    @functools.cached_property
    def step(self) -> Step:
        """Our step, given the recorded thoughts."""
        return self.quiet()(*self.text, thoughts=self.thoughts)

    @functools.cached_property
    def official_step(self) -> Step:
        """The same, but only the positions think that the official policy loss takes."""
        anchors = every_position(self.tokens)[:, : self.rewarded]
        thoughts = self.thoughts[:, : self.rewarded]
        return self.quiet()(*self.text, anchors=anchors, thoughts=thoughts)

    @functools.cached_property
    def targets(self) -> Tensor:
        """(B, rewarded) how many of the m targets of each position are there before padding."""
        ahead = self.real.long().unfold(1, self.m + 1, 1)  # (B, L - m, m + 1), itself first
        return (ahead.cumprod(-1).sum(-1) - 1).clamp(min=0)[:, : self.rewarded]

    @functools.cached_property
    def whole(self) -> Tensor:
        """(B, rewarded) positions of which no target is padding."""
        return self.targets == self.m

    def anchors_with(self, targets: int) -> Tensor:
        """(B, A) positions, officially rewarded, that have just so many targets.

        Shorter rows are filled up with the last position: it has none, so it adds nothing.
        """
        rows = [row.nonzero().flatten() for row in self.targets == targets]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.L - 1)

    def thoughts_at(self, anchors: Tensor) -> Tensor:
        """(B, A, K, n) recorded thoughts of (B, A) anchors."""
        return self.thoughts[torch.arange(self.B)[:, None], anchors]

    def official(self, kind: str, name: str) -> Tensor:
        """A weight ("w") or a gradient ("g_lm", "g_policy", "g_total") by our parameter's name."""
        theirs = official_name(name)
        if kind != "w" and theirs in self.facts.get(f"grad_none_{kind[2:]}", []):
            return torch.zeros_like(self.official("w", name))
        value = self.values[f"{kind}/{theirs}"]
        return value[0] if name in ("start", "end") else value  # their second row is not used

    def steps(self, x: Tensor) -> Tensor:
        """(steps, B K, L, ...) -> (B, L, K, steps, ...)."""
        x = x.unflatten(1, (self.B, self.K))
        return x.permute(1, 3, 2, 0, *range(4, x.ndim))

    def each(self, x: Tensor) -> Tensor:
        """(B K, L, ...) -> (B, L, K, ...)."""
        return x.unflatten(0, (self.B, self.K)).transpose(1, 2)

    def official_sees(
        self, query: Slots, key: Slots, window: int | None = None, visibility: None = None
    ) -> Tensor:
        """Who saw whom in the recorded run; takes the place of `masks.sees`.

        The recorded mask is that of the last pass: earlier ones saw the keys up to themselves.
        """
        allowed = self.values["final_attn_allowed"][:, 0]  # (B K, L, steps L)
        allowed = allowed.unflatten(2, (-1, self.L)).unflatten(0, (self.B, self.K))
        row = torch.arange(self.B).view(-1, *[1] * (query.anchor.ndim - 1))
        sample = query.branch.clamp(min=0) % self.K
        seen = allowed[row, sample, query.anchor, key.depth, key.anchor]
        return seen & (key.depth <= query.depth) & ((key.depth == 0) | (key.branch == query.branch))


@functools.cache
def recorded(name: str, official_view: bool = False) -> Recorded:
    """A case, read once; in the official view its rule of who sees whom is to be in force."""
    return Recorded(name, official_view)


def close(ours: Tensor | float, theirs: Tensor) -> None:
    """Equal to 1e-5, or to 5e-6 of the largest entry where entries cancel: float32 recorded it."""
    ours = torch.as_tensor(ours, dtype=torch.float64)
    scale = float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=5e-6 * scale)


def train(
    quiet: QuietStar,
    tokens: Tensor,
    documents: Tensor,
    thoughts: Tensor,
    anchors: Tensor | None = None,
    counted: Tensor | None = None,
    micro_batch: int = 0,
    measure_terms: bool = False,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What `train_step` logs, and the gradients its optimiser is given.

    Thoughts (B, A, K, n) of (B, A) anchors (None: of all positions) take the place of sampled ones;
    learning rates are 0 and nothing is clipped, so that the module stays as it is.
    """
    anchors = every_position(tokens) if anchors is None else anchors
    size = micro_batch or len(tokens)
    rows = iter(zip(anchors.split(size), thoughts.split(size), strict=True))
    quiet.think = lambda tokens, documents, generator: next(rows)
    optim = OptimConfig(lr=0.0, mixer_lr=0.0, thought_lr=0.0, clip=1e30)
    run = RunConfig(seq=tokens.shape[1], batch=len(tokens), micro_batch=micro_batch)
    config = Config(thought=quiet.config, optim=optim, run=run)
    gradients = {}

    def keep(optimizer, arguments, options):
        for name, p in quiet.named_parameters():
            gradients[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()

    optimizer = make_optimizer(quiet, optim)
    optimizer.register_step_pre_hook(keep)
    record = train_step(
        quiet, optimizer, tokens, documents, config, 0, measure_terms, counted=counted
    )
    return record, gradients
