"""Talking to a model by hand: turns and answers, the commands between them, and a history that stays within the context.

Answers go to stdout and everything else to stderr, so that a pipe holds answers only. What the model says passes through
`terminal.printable`; what the user says is redacted, as any prompt is.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import click

from sysscan_models.errors import Interrupted, SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session, cancelled_at_end
from sysscan_models.prompts import redact, with_system
from sysscan_models.roles import ModelRole
from sysscan_models.samples.answers import judge
from sysscan_models.terminal import printable

RESERVED = 4
"""A prompt may fill the context but for the longest answer, or for this part of it where the answer may be longer."""
BLOCK = '"""'
"""Begins and ends a turn of several lines."""
HELP = """\
/reset         forget the conversation
/reset all     and the system prompt, /json and the figures
/system        show the system prompt
/system TEXT   replace it
/json on|off   constrain answers to the role's JSON schema
/stats         tokens and speed
/help          this list
/quit          end (Ctrl-D does too); Ctrl-C stops an answer
//text         say /text to the model (a path such as /etc/passwd needs no second slash)
\"\"\"            begins and ends a turn of several lines"""


@dataclass
class Figures:
    """What answers cost: tokens, and seconds."""

    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_token: float = 0.0
    """Seconds until the first text of the last answer."""
    finish_reason: str = ""

    def line(self) -> str:
        """Return the figures in words."""
        speed = f", {self.tokens / self.seconds:.1f} tokens/s" if self.seconds > 0 else ""
        return f"{self.prompt_tokens} tokens read, {self.tokens} written in {self.seconds:.1f} s{speed}"


class Dialogue:
    """A conversation with one model. `say` streams an answer; nothing here prints."""

    def __init__(
        self,
        session: Session,
        role: ModelRole,
        *,
        as_json: bool = False,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        if max_tokens is not None and session.n_ctx and max_tokens >= session.n_ctx:
            raise UserError(
                f"--max-tokens {max_tokens}: the model's context has {session.n_ctx} tokens, question and answer together; "
                "give fewer"
            )
        self.session, self.role = session, role
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed
        self._began_with_json = as_json
        self.reset(everything=True)

    def reset(self, *, everything: bool = False) -> None:
        """Forget the turns; with `everything`, go back to the role's system prompt and begin to count anew."""
        self.turns: list[dict[str, str]] = []
        if everything:
            self.system, self.as_json = self.role.system_prompt, self._began_with_json
            self.last, self.total = Figures(), Figures()

    def say(self, text: str) -> Generator[str, None, None]:
        """Ask, and yield the answer's pieces; closing the iterator stops it, and what was said until then is remembered.

        Raises UserError when the turn alone does not fit the context, SysscanError when the model fails; the turn is
        forgotten then.
        """
        self.turns.append({"role": "user", "content": redact(text)})
        said = ""
        try:
            for event in self._events():
                said += event.text
                if event.text:
                    yield event.text
        finally:
            if said:
                self.turns.append({"role": "assistant", "content": said})
            else:
                self.turns.pop()

    def make_room(self, text: str) -> int:
        """Drop the oldest questions, with their answers, until `text` and an answer to it fit; return how many were dropped."""
        dropped, size = 0, self.session.n_ctx
        longest = self.max_tokens or self.role.sampling.max_tokens
        room = size - min(longest, size // RESERVED)
        while size and self.turns and (self.session.count_tokens(self.messages(text)) or 0) > room:
            del self.turns[:2]
            dropped += 1
        return dropped

    def messages(self, text: str = "") -> list[Mapping[str, str]]:
        """Return what the model is sent: system prompt, turns, and `text` as the next one."""
        asked = [{"role": "user", "content": redact(text)}] if text else []
        return with_system(redact(self.system), [*self.turns, *asked])

    def _events(self) -> Iterator[GenerationEvent]:
        request = GenerationRequest(
            "chat",
            tuple(self.messages()),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            json_schema=self.role.response_model.model_json_schema() if self.as_json else None,
        )
        asked, first, event = time.monotonic(), 0.0, GenerationEvent("chat", "")
        try:
            with cancelled_at_end(self.session.generate([request])) as events:
                for event in events:
                    first = first or (time.monotonic() - asked if event.text else 0.0)
                    if event.error:
                        raise event.error
                    yield event
        finally:
            self._count(event, time.monotonic() - asked, first)

    def _count(self, event: GenerationEvent, seconds: float, first: float) -> None:
        self.last = Figures(1, event.prompt_tokens, event.completion_tokens, seconds, first, event.finish_reason)
        self.total.answers += 1
        self.total.prompt_tokens += event.prompt_tokens
        self.total.tokens += event.completion_tokens
        self.total.seconds += seconds


def talk(dialogue: Dialogue) -> None:
    """Read turns from stdin until it ends; answers stream to stdout.

    On a terminal there are prompts, and an error ends a turn only; lines from a pipe have none, and an error is raised.
    Raises UserError where there is no stdin.
    """
    if sys.stdin is None:
        raise UserError("stdin is closed, so there is nobody to talk to; talk on a terminal, or pipe lines in")
    interactive = _interactive()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its history and editing
        _note(f"{dialogue.role.name}: {dialogue.role.description}. /help lists the commands, Ctrl-D ends")
    with _terminated_by_signal():
        for text in _turns(dialogue.role.name, interactive):
            try:
                if not _obey(dialogue, text):
                    return
            except SysscanError as error:
                if not interactive or isinstance(error, Interrupted):
                    raise
                _note(f"error: {error}", fg="red")


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def _turns(name: str, interactive: bool) -> Iterator[str]:
    """Yield what the user says, turn by turn."""
    prompt, more = (f"{name}> ", "... ") if interactive else ("", "")
    while (line := _line(prompt, interactive)) is not None:
        if line.strip().startswith(BLOCK):
            lines = [line.strip()[len(BLOCK) :]]
            while not lines[-1].rstrip().endswith(BLOCK) and (line := _line(more, interactive)) is not None:
                lines.append(line)
            line = "\n".join(lines).strip().removesuffix(BLOCK).strip()
        if line.strip():
            yield line.strip()


def _line(prompt: str, interactive: bool) -> str | None:
    """Return the next line, None at the end. Ctrl-C forgets a line that is being typed, and ends a pipe."""
    while True:
        try:
            return input(prompt) if prompt else _piped_line()
        except EOFError:
            if interactive:
                _note("")
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise Interrupted("stopped") from None
            _note("\n(/quit or Ctrl-D ends)")


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _obey(dialogue: Dialogue, text: str) -> bool:
    """Answer a turn, or do what a command says; return False when the talk is over."""
    word, _, rest = text.partition(" ")
    if text.startswith("//"):
        _answer(dialogue, text[1:])
    elif not text.startswith("/") or "/" in word[1:]:
        _answer(dialogue, text)
    elif word in ("/quit", "/exit", "/bye"):
        return False
    elif word in _COMMANDS:
        _COMMANDS[word](dialogue, rest.strip())
    else:
        _note(f"there is no command {word}; /help lists them, and /{text} says it to the model", fg="red")
    return True


def _answer(dialogue: Dialogue, text: str) -> None:
    """Stream one answer; Ctrl-C stops it, and not the program."""
    said, stopped = "", False
    with closing(dialogue.say(text)) as pieces:
        try:
            if dropped := dialogue.make_room(text):
                _note(f"(the context is full: the oldest {dropped} of the questions are forgotten, with their answers)")
            for piece in pieces:
                said += piece
                click.echo(printable(piece), nl=False)
        except KeyboardInterrupt:
            stopped = True
    if said and not said.endswith("\n"):
        click.echo()
    if stopped:
        if not _interactive():
            raise Interrupted("stopped in the middle of an answer")
        _note("(stopped)")
    elif not said:
        _note("(the model said nothing)")
    elif dialogue.last.finish_reason == "length":
        _note(f"(cut at {dialogue.last.tokens} tokens: the longest answer, or the end of the context)")
    elif dialogue.as_json:
        _, fault = judge(dialogue.role, said)
        _note(f"({printable(fault)})" if fault else "(fits the role's response model)")


def _reset(dialogue: Dialogue, what: str) -> None:
    dialogue.reset(everything=what == "all")
    _note("(forgotten)")


def _system(dialogue: Dialogue, text: str) -> None:
    if text:
        dialogue.system = text
        _note("(the system prompt is replaced; /reset all brings the role's back)")
    else:
        _note(printable(redact(dialogue.system)) or "(there is none)")


def _json(dialogue: Dialogue, switch: str) -> None:
    if switch not in ("on", "off", ""):
        _note(f"/json {switch}: expected on or off", fg="red")
        return
    dialogue.as_json = switch == "on" if switch else dialogue.as_json
    _note(f"(JSON by the role's schema: {'on' if dialogue.as_json else 'off'})")


def _stats(dialogue: Dialogue, _: str) -> None:
    if not dialogue.total.answers:
        _note("(no answer yet)")
        return
    _note(f"last answer: {dialogue.last.line()}, first text after {dialogue.last.first_token:.2f} s")
    _note(f"{dialogue.total.answers} answers: {dialogue.total.line()}")
    used = dialogue.session.count_tokens(dialogue.messages()) if dialogue.turns else 0
    if used is not None and dialogue.session.n_ctx:
        _note(f"context: about {used} of {dialogue.session.n_ctx} tokens")


def _help(_: Dialogue, __: str) -> None:
    _note(HELP)


_COMMANDS: dict[str, Callable[[Dialogue, str], None]] = {
    "/reset": _reset,
    "/system": _system,
    "/json": _json,
    "/stats": _stats,
    "/help": _help,
}


def _note(text: str, fg: str = "bright_black") -> None:
    """Tell the user something that is no answer."""
    click.secho(text, fg=fg, err=True)


@contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """Let SIGTERM end the program, where Ctrl-C ends an answer only."""

    def end(*_: object) -> None:
        raise Interrupted("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
