"""Declarative Attention (arXiv 2609.02737): modes that the model declares by tags.

The prompt is cut into numbered segments. `<focus magic_chunks="2,5">` limits attention to segments 2
and 5, `<local>` to no segment; the closing tag returns to the global mode, in which the whole prompt is
attended. A mode begins on the `>` of the opening tag and ends on that of the matching closing tag.
`<global>` and `</global>` change nothing. Always attended: the first 16 prompt tokens, the prompt from
the question to its end, and the response so far.

An opening tag that does not parse, or names a segment that does not exist, opens a mode that attends to
everything (`Fallback.DENSE`) or to no segment (`Fallback.EMPTY`), until its closing tag. An opening tag
inside an open mode replaces it; a closing tag that does not match the open mode changes nothing; a tag
that is interrupted by another `<`, or too long, is text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import ProtocolError
from ..spans import Span, canonical, union
from ._text import WHITE_SPACE, Fallback, Fault, is_word_character

_SINK_TOKENS = 16
_MAX_FOCUS_SEGMENTS = 3
_MAX_TAG_CHARS = 128
_NAMES = ("global", "focus", "local")

GLOBAL = "global"
"""The mode that attends to the whole prompt."""
LOCAL = ()
"""The mode that attends to no segment. Any other mode is the tuple of its segments' numbers."""

Mode = str | tuple[int, ...]


class PromptLayout:
    """Where the parts of a prompt lie, in tokens: `segments` (numbered from 1) ascending, disjoint,
    non-empty and at or before `question_start`. Tokens between segments belong to none and are attended
    in the global mode only. Raises `ProtocolError` for anything else."""

    def __init__(self, segments: Iterable[Span], question_start: int, prompt_tokens: int):
        if not 0 <= question_start <= prompt_tokens:
            raise ProtocolError(
                f"the question starts at token {question_start} of a prompt of {prompt_tokens} tokens"
            )
        self.segments: Sequence[Span] = list(segments)
        previous_end = 0
        for number, (start, end) in enumerate(self.segments, 1):
            if not previous_end <= start < end <= question_start:
                raise ProtocolError(
                    f"segment {number} is [{start}, {end}): segments must be non-empty, ascending and "
                    f"disjoint, and end before the question at token {question_start}"
                )
            previous_end = end
        self.question_start = question_start
        self.prompt_tokens = prompt_tokens

    def attended(self, mode: Mode) -> list[Span]:
        """The prompt tokens that are attended in `mode`. Numbers without a segment select nothing."""
        if isinstance(mode, str):
            return canonical([(0, self.prompt_tokens)])
        always = [
            (0, min(_SINK_TOKENS, self.prompt_tokens)),
            (self.question_start, self.prompt_tokens),
        ]
        return union(always, (self.segments[n - 1] for n in mode if 1 <= n <= len(self.segments)))


class DeclarativeAttention:
    """The state machine over one response, which begins in the global mode."""

    def __init__(self, layout: PromptLayout, fallback: Fallback = Fallback.DENSE):
        self._layout = layout
        self._fallback = fallback
        self.mode: Mode = GLOBAL
        """The present mode: `GLOBAL`, `LOCAL` or the numbers of the segments in focus."""
        self.transitions: list[tuple[int, Mode]] = []
        """All changes of mode: characters of the response up to and including the `>`, and the mode."""
        self.faults: Counter[Fault] = Counter()
        self.kv_len = layout.prompt_tokens
        self._open: str | None = None
        self._tag: str | None = None
        self._characters = 0

    def push_token(self, text: str) -> bool:
        """Takes the text of the next generated token; see the package for what is returned."""
        transitions = len(self.transitions)
        self.kv_len += 1
        for c in text:
            self._push_char(c)
        return len(self.transitions) > transitions

    def spans(self) -> list[Span]:
        """What the newest token attends to as a query."""
        response = (self._layout.prompt_tokens, self.kv_len)
        return union(self._layout.attended(self.mode), [response])

    def finish(self) -> None:
        """Ends the response."""
        self._abandon_tag(Fault.UNFINISHED)
        if self._open is not None:
            self._open = None
            self.faults[Fault.UNFINISHED] += 1

    def _push_char(self, c: str) -> None:
        self._characters += 1
        if c == "<":
            self._abandon_tag(Fault.UNFINISHED)
            self._tag = ""
        elif self._tag is None:
            return
        elif c == ">":
            tag, self._tag = self._tag, None
            self._close_tag(tag)
        else:
            self._tag += c
            if not _may_be_tag(self._tag):
                self._tag = None
            elif len(self._tag) > _MAX_TAG_CHARS:
                self._abandon_tag(Fault.TOO_LONG)

    def _abandon_tag(self, fault: Fault) -> None:
        """Drops text that began like a tag; a fault only if it had got as far as a tag's whole name."""
        if self._tag is not None and _split_tag(self._tag) is not None:
            self.faults[fault] += 1
        self._tag = None

    def _close_tag(self, tag: str) -> None:
        parts = _split_tag(tag)
        if parts is None or parts[1] == "global":
            return
        is_closing, name, attributes = parts
        is_plain = not attributes.strip(WHITE_SPACE)
        if is_closing:
            if self._open != name:
                self.faults[Fault.UNMATCHED_CLOSE] += 1
            elif not is_plain:
                self.faults[Fault.BAD_ATTRIBUTE] += 1
            else:
                self._open = None
                self._enter(GLOBAL)
            return
        if self._open is not None:
            self.faults[Fault.NESTED] += 1
        self._open = name
        if name == "focus":
            mode = self._parse_focus(attributes)
        else:
            mode = LOCAL if is_plain else Fault.BAD_ATTRIBUTE
        if isinstance(mode, Fault):
            self.faults[mode] += 1
            mode = GLOBAL if self._fallback is Fallback.DENSE else LOCAL
        self._enter(mode)

    def _parse_focus(self, attributes: str) -> Mode | Fault:
        """`magic_chunks="K"`, `"K,M"` or `"K,M,N"`, in single or double quotes."""
        text = attributes.strip(WHITE_SPACE)
        for literal in ("magic_chunks", "="):
            if not text.startswith(literal):
                return Fault.BAD_ATTRIBUTE
            text = text[len(literal) :].lstrip(WHITE_SPACE)
        if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
            return Fault.BAD_ATTRIBUTE
        numbers = []
        for number in text[1:-1].split(","):
            number = number.strip(WHITE_SPACE)
            if not (number.isascii() and number.isdigit()):
                return Fault.BAD_ATTRIBUTE
            if not 1 <= int(number) <= len(self._layout.segments):
                return Fault.UNKNOWN_REFERENCE
            numbers.append(int(number))
        return Fault.BAD_ATTRIBUTE if len(numbers) > _MAX_FOCUS_SEGMENTS else tuple(numbers)

    def _enter(self, mode: Mode) -> None:
        if mode != self.mode:
            self.mode = mode
            self.transitions.append((self._characters, mode))


def _may_be_tag(text: str) -> bool:
    """Whether text behind a `<` is a tag of the protocol or the beginning of one."""
    name = text.removeprefix("/")
    return _split_tag(text) is not None or any(full.startswith(name) for full in _NAMES)


def _split_tag(text: str) -> tuple[bool, str, str] | None:
    """Whether a tag is a closing one, its name, and what follows the name."""
    name = text.removeprefix("/")
    for full in _NAMES:
        rest = name.removeprefix(full)
        if rest != name and (not rest or not is_word_character(rest[0])):
            return len(name) < len(text), full, rest
    return None
