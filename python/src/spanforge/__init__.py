"""Span attention in Python: loads kernels that `spanforge tune` has exported, and calls them on torch
tensors. `docs/python.md` begins with an example.

- `artifact`, `bucket`, `configuration`: an exported artifact, verified, and the choice of its kernel
- `protocol`: from generated text to the spans that the next step attends to
- `plan`: from spans to the arrays of a launch, with all checks
- `attention`, `driver`: load once, plan once per step, run once per layer
- `reference`: what the kernels compute, in torch
- `dataset`, `masks`: training data with declared spans, and attention masks over tokens

Only `attention`, `reference` and `masks` need torch.
"""

import importlib

from .artifact import Artifact, DeviceProperties
from .bucket import Bucket
from .configuration import AttentionShape, KernelShape
from .errors import SpanforgeError
from .plan import Plan, plan_step
from .protocol import DeclarativeAttention, Fallback, Fault, PromptLayout, SelfSpanAttention

_NEED_TORCH = {
    "Limits": "attention",
    "SpanAttention": "attention",
    "attention_mask": "masks",
    "merge_outputs_reference": "reference",
    "span_attention_reference": "reference",
}

__all__ = [
    "Artifact",
    "AttentionShape",
    "Bucket",
    "DeclarativeAttention",
    "DeviceProperties",
    "Fallback",
    "Fault",
    "KernelShape",
    "Plan",
    "PromptLayout",
    "SelfSpanAttention",
    "SpanforgeError",
    "plan_step",
]


def __getattr__(name: str):
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_NEED_TORCH[name]}", __name__), name)
