"""How fast, in how much memory: work (what is measured), __main__ (python -m qs.bench)."""
