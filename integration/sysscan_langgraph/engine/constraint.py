"""What a grammar says about the text to come: what must follow, and how an answer that runs out of room can still be closed.

Both look ahead on a copy of the grammar, a byte at a time. Where only one byte may follow, no model is asked: the text up to
the next choice is put in, in the tokens that the tokenizer has for it. Where the tokens that are left are nearly those of the
shortest way to the end of the JSON, open strings, lists and objects are closed at the first place that the grammar allows; the
model goes on choosing what has no such place (a severity, a number) while there is room, and then the shortest way is taken.
An answer that has no room for the shortest way from its beginning is not closed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sysscan_langgraph.engine.sampling import Grammar, Tools

LONGEST_RUN = 512
"""Bytes that are put in at once, at most."""
LONGEST_WAY = 2048
"""Bytes that the way to the end of the JSON may have; beyond, it is not looked for."""
_SLACK = 2
"""Tokens that are kept free besides the shortest way: the model's own may divide it in another way."""
_CHOICE = 4
"""Tokens that are kept free for each value that the model still has to choose when an answer is closed."""
_STRUCTURE = frozenset(b'"{}[],:')
_CLOSERS = b"}]"
_FIRST = b'}],"0123456789ntf[{-' + bytes(range(0x61, 0x7B)) + bytes(range(0x41, 0x5B))
_END = -1


class Outline:
    """Whether JSON that is being written stands within a string."""

    def __init__(self, in_string: bool = False, escaped: bool = False) -> None:
        self.in_string, self.escaped = in_string, escaped

    def copy(self) -> Outline:
        """Return another one at the same place."""
        return Outline(self.in_string, self.escaped)

    def add(self, text: bytes) -> None:
        """Go on with text."""
        for byte in text:
            if self.escaped:
                self.escaped = False
            elif byte == 0x22:
                self.in_string = not self.in_string
            elif byte == 0x5C:
                self.escaped = self.in_string


@dataclass(frozen=True)
class Given:
    """Tokens that follow without asking the model, and whether the answer ends with them."""

    tokens: tuple[int, ...] = ()
    ended: bool = False


_NOTHING = Given()


class Constraint:
    """Looks ahead for one answer."""

    def __init__(self, tools: Tools, grammar: Grammar, *, is_json: bool, forces: bool = True) -> None:
        self._tools, self._grammar, self._forces = tools, grammar, forces
        self._outline = Outline() if is_json else None
        self._closing = False
        self._stale = True
        self._need = self._slack = 0
        self.shortened = False
        """Whether a string, a list or an object was closed for want of room."""

    def add(self, piece: bytes) -> None:
        """Go on with the text of a token that was accepted."""
        if self._outline:
            self._outline.add(piece)
            self._stale = self._stale or not _STRUCTURE.isdisjoint(piece)

    def has_room(self, token: int, room: int) -> bool:
        """Say whether the JSON can still be closed within `room` tokens when this one is the next; always if it cannot now."""
        piece = self._tools.vocabulary.piece(token)
        if not self._outline or self._need < 0 or _STRUCTURE.isdisjoint(piece):
            return True
        grammar, outline = self._grammar.clone(), self._outline.copy()
        try:
            grammar.accept(token)
            outline.add(piece)
            text, _ = self._way(grammar, outline)
        finally:
            grammar.free()
        return text is not None and 1 + len(self._tokens(text)) <= room

    def closing(self) -> Given:
        """Return what closes the JSON here, instead of a token that there is no room for."""
        self._closing = self.shortened = True
        given = self._run(self._outline)
        return given if given.tokens or given.ended else Given(self._shortest()[0], ended=True)

    def given(self, room: int) -> Given:
        """Return what comes next without asking the model, when the answer may have `room` more tokens."""
        if not self._tools.bytes:
            return _NOTHING
        if self._outline and self._comes_near(room):
            tokens, choices = self._shortest()
            self._need, self._slack, self._stale = len(tokens), _SLACK + _CHOICE * choices, False
            if not tokens or room < self._need:  # it cannot be closed
                self._need, self._closing = -1, False
            else:
                self._closing = room <= self._need + self._slack
                if room <= self._need + 1:
                    self.shortened = True
                    return Given(tokens, ended=True)
        if self._closing:
            return self._run(self._outline)
        return self._run(None) if self._forces else _NOTHING

    def _comes_near(self, room: int) -> bool:
        """Say whether the way to the end must be looked for: it has changed, or the room is hardly more than it was."""
        return self._need >= 0 and (self._stale or self._closing or room <= self._need + self._slack)

    def _shortest(self) -> tuple[tuple[int, ...], int]:
        """Return the tokens of the shortest way to the end, nearly, and how many of its values are the model's to choose."""
        if not self._outline:
            return (), 0
        grammar = self._grammar.clone()
        try:
            text, choices = self._way(grammar, self._outline.copy())
        finally:
            grammar.free()
        return self._tokens(text or b""), choices

    def _way(self, grammar: Grammar, outline: Outline) -> tuple[bytes | None, int]:
        """Go the shortest way to the end, nearly; return its text, and how many of its values are the model's to choose."""
        text, choices, choosing = bytearray(), 0, False
        while len(text) < LONGEST_WAY:
            allowed = self._tools.next_bytes(grammar)
            byte = _closer(allowed, outline)
            if byte == _END:
                return bytes(text), choices
            if byte is None and not allowed:
                return None, 0
            if byte is None:
                choices += len(allowed) > 1 and not choosing
                choosing = len(allowed) > 1 or (choosing and outline.in_string)
                byte = next((byte for byte in _FIRST if byte in allowed), min(allowed))
            else:
                choosing = False
            grammar.accept(self._tools.byte_token(byte))
            outline.add(bytes((byte,)))
            text.append(byte)
        return None, 0

    def _run(self, outline: Outline | None) -> Given:
        """Return the text up to the model's next choice; with an outline, what can be closed is closed."""
        grammar, text, closed, ended = self._grammar.clone(), bytearray(), False, False
        outline = outline and outline.copy()
        try:
            while len(text) < LONGEST_RUN:
                allowed = self._tools.next_bytes(grammar)
                byte = _closer(allowed, outline) if outline else (_END if allowed == {_END} else None)
                if byte == _END:
                    ended = True
                    self.shortened |= len(allowed) > 1
                    break
                if byte is None:
                    if len(allowed) != 1:
                        break
                    (byte,) = allowed
                elif len(allowed) > 1:
                    closed = self.shortened = True
                grammar.accept(self._tools.byte_token(byte))
                if outline:
                    outline.add(bytes((byte,)))
                text.append(byte)
        finally:
            grammar.free()
        tokens = self._tokens(bytes(text))
        # The last token before a choice is the model's own: it may reach beyond what must follow.
        return Given(tokens if ended or closed else tokens[:-1], ended)

    def _tokens(self, text: bytes) -> tuple[int, ...]:
        """Return the tokenizer's tokens of a text; bytes of an unfinished character are left out."""
        return tuple(self._tools.vocabulary.encode_text(text.decode("utf-8", "ignore"), "text")[0]) if text else ()


def _closer(allowed: frozenset[int], outline: Outline) -> int | None:
    """Return the byte that closes what is open, or the end; None where nothing can be closed."""
    if _END in allowed:
        return _END
    if outline.in_string:
        return 0x22 if 0x22 in allowed and not outline.escaped else None
    return next((byte for byte in _CLOSERS if byte in allowed), None)
