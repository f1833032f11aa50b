"""Self-selected attention spans: each step of the response names the earlier steps that it reads.

    response = { step } "$"
    step     = name "<" declaration ">" computation ";"

A name is letters, digits and `_`, beginning with a letter. The declaration is any text; every name in
it refers to an earlier step or to a named span of the prompt. The computation is any text without `;`.
White space around names is ignored.

Line 0 is the prompt; line k is step k with its `;`. What a token attends to as a query:

| token | attends to |
|---|---|
| from the step's first up to before `>` | first token, own line, line 0 |
| from `>` up to before `;` | first token, own line, exactly the declared lines |
| `;` | first token, own line, line 0: it predicts the next step's name |

A token whose text crosses the end of a line belongs to both lines, and the state after its last
character is the one that counts. A declaration with an unknown, forward or own name, or with a nested
`<`, or too long, attends to everything until the step ends (`Fallback.DENSE`) or to the lines that
were understood (`Fallback.EMPTY`). A step that ends before its declaration is closed keeps the scope
of line 0. A step that takes an earlier name hides the earlier one; one without a name cannot be
referred to.
"""

import enum
from collections import Counter
from collections.abc import Mapping

from ..errors import ProtocolError
from ..spans import Span, canonical, union
from ._text import WHITE_SPACE, Fallback, Fault, is_alphabetic, is_word_character

_SINK_TOKENS = 1
_MAX_HEAD_CHARS = 256


class _Region(enum.Enum):
    NAME = 0
    DECLARATION = 1
    COMPUTATION = 2
    END = 3


class SelfSpanAttention:
    """The state machine over one response.

    `prompt_tokens` is the length of the prompt, `names` its named spans (such as the sentences of an
    article), both in tokens. Raises `ProtocolError` for a name that is none and for a span that is
    reversed or ends past the prompt.
    """

    def __init__(
        self,
        prompt_tokens: int,
        names: Mapping[str, Span] | None = None,
        fallback: Fallback = Fallback.DENSE,
    ):
        if prompt_tokens < 0:
            raise ProtocolError(f"a prompt of {prompt_tokens} tokens: give its length")
        self._prompt_tokens = prompt_tokens
        self._fallback = fallback
        # What can be referred to; a later line hides an earlier one of its name.
        self._lines: dict[str, Span] = {}
        for name, (start, end) in (names or {}).items():
            if not _is_name(name):
                raise ProtocolError(f"{name!r} is not a name: letters, digits and _, beginning with a letter")
            if not 0 <= start <= end <= prompt_tokens:
                raise ProtocolError(
                    f"{name!r} is [{start}, {end}), which is no part of the prompt's {prompt_tokens} tokens"
                )
            self._lines[name] = (start, end)
        self._region = _Region.NAME
        self._head = ""
        self._name = ""
        self._declared: list[Span] | None = []
        self._line_start = prompt_tokens
        self._ended: list[Span] = []
        self.kv_len = prompt_tokens
        self.steps = 0
        """Steps that have ended."""
        self.faults: Counter[Fault] = Counter()

    @property
    def is_finished(self) -> bool:
        """Whether the response has ended with `$`."""
        return self._region is _Region.END

    @property
    def declared(self) -> list[Span] | None:
        """The lines that the present step declared, in tokens; `None` where the fallback attends to
        everything. Empty until the declaration is closed."""
        return self._declared

    def push_token(self, text: str) -> bool:
        """Takes the text of the next generated token; see the package for what is returned."""
        grown = union(self.spans(), [(self.kv_len, self.kv_len + 1)])
        self._ended = []
        self.kv_len += 1
        for c in text:
            self._push_char(c)
        return self.spans() != grown

    def spans(self) -> list[Span]:
        """What the newest token attends to as a query."""
        sink = (0, min(_SINK_TOKENS, self._prompt_tokens))
        return union([sink, (self._line_start, self.kv_len)], self._ended, self._scope())

    def finish(self) -> None:
        """Ends the response."""
        named = self._region is not _Region.NAME or self._head.strip(WHITE_SPACE)
        if self._region is not _Region.END and named:
            self.faults[Fault.UNFINISHED] += 1
        self._region = _Region.END

    def _push_char(self, c: str) -> None:
        # A token that ends one line and goes on belongs to the next as well.
        if self._line_start == self.kv_len:
            self._line_start = self.kv_len - 1
        region = self._region
        if region is _Region.END:
            return
        if c == ";":
            self._end_line()
        elif region is _Region.COMPUTATION:
            return
        elif region is _Region.NAME and c == "$" and not self._head.strip(WHITE_SPACE):
            self._region = _Region.END
        elif region is _Region.NAME and c == "<":
            self._name = self._head.strip(WHITE_SPACE)
            if not _is_name(self._name):
                self.faults[Fault.MISSING_NAME] += 1
                self._name = ""
            self._head = ""
            self._region = _Region.DECLARATION
        elif region is _Region.NAME and c == ">":
            self._give_up(Fault.UNMATCHED_CLOSE)
        elif region is _Region.DECLARATION and c == "<":
            self._give_up(Fault.NESTED)
        elif region is _Region.DECLARATION and c == ">":
            self._declare()
        else:
            self._head += c
            if len(self._head) > _MAX_HEAD_CHARS:
                self._give_up(Fault.TOO_LONG)

    def _declare(self) -> None:
        """Resolves the references of a declaration that was just closed."""
        references = [word for word in _words(self._head) if _is_name(word)]
        self._head = ""
        self._declared = canonical(self._lines[name] for name in references if name in self._lines)
        self._region = _Region.COMPUTATION
        if any(name not in self._lines for name in references):
            self._give_up(Fault.UNKNOWN_REFERENCE)

    def _give_up(self, fault: Fault) -> None:
        """Counts a fault of the step's head; the rest of the step is computation under the fallback."""
        self.faults[fault] += 1
        self._head = ""
        self._region = _Region.COMPUTATION
        if self._fallback is Fallback.DENSE:
            self._declared = None

    def _end_line(self) -> None:
        if self._region is _Region.NAME:
            self.faults[Fault.MISSING_DECLARATION] += 1
        elif self._region is _Region.DECLARATION:
            self.faults[Fault.UNFINISHED] += 1
        line = (self._line_start, self.kv_len)
        self._ended = union(self._ended, [line])
        if self._name:
            if self._name in self._lines:
                self.faults[Fault.REDEFINED_NAME] += 1
            self._lines[self._name] = line
        self._name = ""
        self.steps += 1
        self._line_start = self.kv_len
        self._region = _Region.NAME
        self._head = ""
        self._declared = []

    def _scope(self) -> list[Span]:
        """The lines in scope now, besides the first token and the own line."""
        if self._region is not _Region.COMPUTATION:
            return canonical([(0, self._prompt_tokens)])
        return canonical([(0, self.kv_len)]) if self._declared is None else self._declared


def _words(text: str) -> list[str]:
    """Maximal runs of letters, digits and `_`."""
    return "".join(c if is_word_character(c) else " " for c in text).split(" ")


def _is_name(text: str) -> bool:
    return text != "" and is_alphabetic(text[0]) and all(is_word_character(c) for c in text)
