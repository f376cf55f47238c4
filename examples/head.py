"""A mixing head of one's own, of other tensors: trained for some steps, stored and loaded."""

from pathlib import Path

import torch

import qs
from qs.model import folders
from qs.presets import PRESETS
from qs.training.trainer import Trainer


class Agreement(torch.nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, base, after):  # outputs (..., D) without and after a thought -> scores (...)
        return (base * after) @ self.scale


config = PRESETS["tiny"].changed(steps=4, batch=2, eval_rows=0)  # as `python train.py`, but short
parts = qs.Parts(mixer=Agreement)
trainer = Trainer(config, folders.resolve("tiny"), Path("runs/agreement"), parts)
trainer.begin()
while not trainer.finished:
    print(f"weight {trainer.step()['weight_mean']:+.5f}")
trainer.save()
print(qs.load(trainer.folder, parts=parts).predict("71600\n"))
