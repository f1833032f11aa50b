"""Training data with declared spans: JSON Lines, as `spanforge dataset` writes them.

    {"prompt": "...", "response": "...", "names": {"s0": [2, 17]}, "prompt_tokens": 19,
     "phases": [{"tokens": 5, "spans": [[0, 19]], "tail_start": 19}, ...]}

(each object on one line). Units are characters (code points) of prompt and response, one behind the
other. Phases mean what those of a decode trace do (`docs/traces.md`), with `prompt_tokens` the
characters of the prompt: step s is the query at character s of the response, and attends to the spans
of its phase and to everything from `tail_start` (by default the prompt's end) to itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .protocol import Fallback, SelfSpanAttention
from .spans import Span, canonical, union


@dataclass(frozen=True)
class Phase:
    """A run of `tokens` steps with one rule of what they attend to, in characters."""

    tokens: int
    spans: list[Span]
    tail_start: int


@dataclass(frozen=True)
class Sample:
    """A prompt with the response to learn. `names` are the parts of the prompt that the response can
    refer to, in characters."""

    prompt: str
    response: str
    names: dict[str, Span]
    phases: list[Phase]

    def attended(self) -> Iterator[list[Span]]:
        """Per character of the response what it attends to as a query, by the phases."""
        query = len(self.prompt)
        for phase in self.phases:
            for _ in range(phase.tokens):
                yield union(phase.spans, [(phase.tail_start, query + 1)])
                query += 1

    def declared(self) -> Iterator[list[Span]]:
        """The same by the protocol, fed with the response character by character."""
        protocol = SelfSpanAttention(len(self.prompt), self.names, Fallback.DENSE)
        for c in self.response:
            protocol.push_token(c)
            yield protocol.spans()


def read_dataset(path: str | Path) -> list[Sample]:
    """Reads a file; empty lines are skipped. Raises `DatasetError`, naming the line."""
    samples = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    samples.append(_parse(f"{path} line {number}", line))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: {error}; `spanforge dataset` writes such files") from None
    if not samples:
        raise DatasetError(f"{path}: no samples; `spanforge dataset` writes such files")
    return samples


def named_tokens(names: Mapping[str, Span], offsets: Sequence[Span]) -> dict[str, Span]:
    """Named parts of a prompt in tokens, as `SelfSpanAttention` takes them. `names` and `offsets`, one per
    token, are in characters; a token that reaches into a part belongs to it."""
    named = {}
    for name, (start, end) in names.items():
        inside = [at for at, token in enumerate(offsets) if token[0] < end and token[1] > start]
        named[name] = (inside[0], inside[-1] + 1) if inside else (0, 0)
    return named


def _parse(where: str, line: str) -> Sample:
    try:
        fields = json.loads(line)
        prompt, response = fields["prompt"], fields["response"]
        if not (isinstance(prompt, str) and isinstance(response, str)):
            raise TypeError("prompt and response are texts")
        if fields.get("prompt_tokens", len(prompt)) != len(prompt):
            raise ValueError(f"prompt_tokens is not the prompt's {len(prompt)} characters")
        names = {name: _span(span) for name, span in fields.get("names", {}).items()}
        phases = [
            Phase(
                int(phase["tokens"]),
                canonical(_span(span) for span in phase["spans"]),
                int(phase.get("tail_start", len(prompt))),
            )
            for phase in fields["phases"]
        ]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{where}: not a sample: {what}") from None
    first = len(prompt)
    for number, phase in enumerate(phases):
        if phase.tokens < 1:
            raise DatasetError(f"{where}: phase {number} has {phase.tokens} tokens: leave it out")
        # A phase's spans and its tail exist at its first step.
        if not 0 <= phase.tail_start <= first or (phase.spans and phase.spans[-1][1] > first + 1):
            raise DatasetError(
                f"{where}: phase {number}: spans or tail_start lie behind its first character {first}"
            )
        first += phase.tokens
    if first != len(prompt) + len(response):
        raise DatasetError(
            f"{where}: its phases have {first - len(prompt)} steps, and the response has "
            f"{len(response)} characters"
        )
    return Sample(prompt, response, names, phases)


def _span(pair: Any) -> Span:
    start, end = pair
    if not (type(start) is type(end) is int and 0 <= start <= end):
        raise ValueError(f"{pair} is not a span: start and end, half-open")
    return start, end
