"""What both protocols say of text."""

import enum
import unicodedata

# The characters of the Unicode property White_Space, which `str.strip()` exceeds by four controls.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class Fallback(enum.Enum):
    """What an annotation that cannot be understood selects."""

    DENSE = "dense"
    """Everything: costs time and loses nothing."""
    EMPTY = "empty"
    """Nothing beyond what is always attended and what was understood."""


class Fault(enum.Enum):
    """What can be wrong with an annotation."""

    BAD_ATTRIBUTE = "bad attribute"
    UNKNOWN_REFERENCE = "unknown reference"
    UNMATCHED_CLOSE = "unmatched close"
    NESTED = "nested"
    UNFINISHED = "unfinished"
    TOO_LONG = "too long"
    MISSING_NAME = "missing name"
    REDEFINED_NAME = "redefined name"
    MISSING_DECLARATION = "missing declaration"


def is_alphabetic(c: str) -> bool:
    category = unicodedata.category(c)
    return category[0] == "L" or category == "Nl"


def is_word_character(c: str) -> bool:
    """A letter, a digit or `_`."""
    return c == "_" or unicodedata.category(c)[0] in "LN"
