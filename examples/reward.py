"""A reward of one's own: the loop of train.py, with gains of at most 0.1 nats a token."""

from pathlib import Path

from qs.model import folders
from qs.presets import PRESETS
from qs.quietstar import Parts
from qs.training.trainer import Trainer


def clipped(nll_base, nll_mix, valid):
    """NLL without a thought (B, A, m) and with it (B, A, K, m), which count -> (B, A, K)."""
    gain = (nll_base[:, :, None] - nll_mix).clamp(-0.1, 0.1).sum(-1)
    return gain * valid.all(-1)[:, :, None]


config = PRESETS["tiny"].changed(steps=4, batch=2, eval_rows=0)  # as `python train.py`, but short
parts, run = Parts(reward=clipped), Path("runs/clipped")
trainer = Trainer(config, folders.resolve("tiny"), run, parts)
trainer.begin()
while not trainer.finished:
    record = trainer.step()
    print(f"step {record['step']}: loss {record['loss']:.3f}, reward {record['reward']:+.5f} nats")
trainer.save()
print(f"written to {trainer.folder}: python evaluate.py score {trainer.folder}")
