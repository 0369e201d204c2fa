"""Slow NumPy references, written from the paper and the original code.

Nothing here imports the package under test (`test_structure.py` asserts it): a reference that
shares code, or a rounding, with what it checks proves nothing.
"""
