"""Whether a text holds any of many words, asked in one pass: most texts hold none, and then nothing else looks at them.

Python searches for one word at a time, and its patterns with alternatives are slow. The engine that pydantic carries for its
constraints on text is compiled, takes linear time, and looks for all words at once. Only yes or no comes from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pydantic_core import SchemaValidator, core_schema

Gate = Callable[[str], bool]
"""Says whether a text may hold something; the text must be one that UTF-8 can write."""


def words(literals: Iterable[str]) -> Gate:
    """Return a gate that opens for text with any of these words in it."""
    return pattern("|".join(map(re.escape, literals)))


def pattern(expression: str) -> Gate:
    """Return a gate that opens where an expression matches, in the syntax of the regex crate: without looking around."""
    return SchemaValidator(core_schema.str_schema(pattern=expression)).isinstance_python
