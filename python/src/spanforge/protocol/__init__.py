"""Protocols by which a model says, in the text it generates, what its next steps attend to.

Each is a state machine fed with generated tokens as text. Text may be cut into tokens anywhere; only
the concatenation matters for what is declared. A malformed annotation is counted by kind and
resolved by a `Fallback`; no text makes a protocol fail. Both have

- `push_token(text) -> bool`: takes the text of the next generated token, and says whether it changed
  what is selected beyond the growth by the token itself;
- `spans()`: what the newest token attends to as a query, itself included, in logical positions
  (prompt first, then response);
- `kv_len`: tokens of prompt and response so far, the KV length of that step;
- `faults`: a `Counter` of `Fault`;
- `finish()`: ends the response; what is still open is counted as unfinished.

Letters are those of the Unicode categories L and Nl, digits those of N. The Rust side also counts
combining vowel signs as letters; names without them mean the same to both.
"""

from ._text import Fallback, Fault
from .declarative import DeclarativeAttention, PromptLayout
from .self_span import SelfSpanAttention

__all__ = ["DeclarativeAttention", "Fallback", "Fault", "PromptLayout", "SelfSpanAttention"]
