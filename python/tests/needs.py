"""Modules that need more than the standard library say so and are skipped where it is missing."""

import importlib.util
import unittest


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise unittest.SkipTest(f"needs {', '.join(missing)}: see docs/python.md")
    if "torch" in modules:
        import torch

        # Tensors are small here, and threads that wait for each other on a busy machine are slow.
        torch.set_num_threads(1)
