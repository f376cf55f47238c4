"""qs: Quiet-STaR and STaR in plain PyTorch. Read `qs/quiet.py` first."""
