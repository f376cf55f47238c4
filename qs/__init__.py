"""qs: Quiet-STaR and STaR in plain PyTorch. Read `qs/quietstar/algorithm.py` first."""
