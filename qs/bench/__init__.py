"""How fast, in how much memory.

work (what is measured), measure (how), step, inference and data (the modes), __main__
(python -m qs.bench).
"""
