"""`sysscan-models chat` as a user meets it: piped lines, a real terminal, and a history that stays within the context."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands_cases
import orjson
import pytest
from engine_cases import model_file

from sysscan_langgraph.dialogue import Dialogue
from sysscan_models import packaging
from sysscan_models.interfaces import ModelRef
from sysscan_models.roles import GENERALIST, SPECIALIST

PROGRAM = [sys.executable, commands_cases.__file__]
Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Chat:
    """Talk in this process: the lines, then options. Returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def chat(lines: str, *words: str, role: str = "specialist", backend: str = "by_hand") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = commands_cases.run_main(monkeypatch, "chat", role, "--backend", backend, *words)
        return (code, *capsys.readouterr())

    return chat


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def asked(log: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in log.read_bytes().splitlines()]


def turns(request: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in request["messages"] if turn["role"] != "system"]


def test_piped_lines_are_asked_one_after_the_other_with_what_was_said_before(chat: Chat, log: Path) -> None:
    code, out, err = chat("one\n\ntwo\n", "--set", "answer=It is so.", "--set", f"log={log}")
    assert (code, out, err) == (0, "It is so.\nIt is so.\n", "")
    first, second = asked(log)
    assert turns(first) == ["one"]
    assert turns(second) == ["one", "It is so.", "two"]
    assert first["messages"][0] == {"role": "system", "content": SPECIALIST.system_prompt}


def test_reset_and_system(chat: Chat, log: Path) -> None:
    lines = "one\n/reset\n/system Be brief.\n/system\ntwo\n/reset all\nthree\n/quit\nfour\n"
    code, _, err = chat(lines, "--set", f"log={log}")
    assert (code, "Be brief." in err) == (0, True)
    assert [turns(request) for request in asked(log)] == [["one"], ["two"], ["three"]]
    prompts = [request["messages"][0]["content"] for request in asked(log)]
    assert prompts == [SPECIALIST.system_prompt, "Be brief.", SPECIALIST.system_prompt]


def test_the_system_prompt_can_be_given_or_left_out(chat: Chat, log: Path) -> None:
    chat("one\n", "--system", "Be brief.", "--set", f"log={log}")
    chat("one\n", "--system", "", "--set", f"log={log}")
    assert [request["messages"][0]["content"] for request in asked(log)] == ["Be brief.", "one"]


def test_json_constrains_answers_and_judges_them(chat: Chat, log: Path) -> None:
    code, _, err = chat("one\n/json on\ntwo\n/json off\nthree\n/json perhaps\n", "--set", f"log={log}")
    assert [request["schema"] for request in asked(log)] == [False, True, False]
    assert "(fits the role's response model)" in err
    assert "/json perhaps: expected on or off" in err
    assert "not JSON" in chat("one\n", "--json", "--set", "answer=no", "--set", f"log={log}")[2]
    assert asked(log)[-1]["schema"] is True
    assert code == 0


def test_stats_say_what_answers_cost(chat: Chat) -> None:
    _, _, err = chat("/stats\none\ntwo\n/stats\n", "--set", "answer=It is so.", "--system", "Be brief.")
    assert "(no answer yet)" in err
    assert re.search(r"last answer: 7 tokens read, 3 written in \d+\.\d s, .* tokens/s, first text after \d+\.\d\d s", err)
    assert "2 answers: 10 tokens read, 6 written" in err
    assert "context: about 10 of 4096 tokens" in err


@pytest.mark.parametrize(
    ("line", "turn"),
    [
        ("/etc/passwd is writable", "/etc/passwd is writable"),
        ("//tmp is writable", "/tmp is writable"),
        ('"""\none\n  two\n"""', "one\n  two"),
        ('"""one\ntwo"""', "one\ntwo"),
        ('"""one"""', "one"),
        ("key hf_a1B2a1B2a1B2a1B2a1B2a1B2", "key [HF_TOKEN]"),
    ],
)
def test_what_a_line_means(chat: Chat, log: Path, line: str, turn: str) -> None:
    chat(f"{line}\n", "--set", f"log={log}")
    assert [turns(request) for request in asked(log)] == [[turn]]


def test_an_unknown_command_is_not_sent(chat: Chat, log: Path) -> None:
    code, out, err = chat("/rest now\n/help\n", "--set", f"log={log}")
    assert (code, out, log.exists()) == (0, "", False)
    assert "there is no command /rest; /help lists them, and //rest now says it to the model" in err
    assert "/reset all" in err


def test_a_models_text_steers_no_terminal(chat: Chat) -> None:
    _, out, _ = chat("one\n", "--set", "answer=red \x1b[31m\x1b]0;title\x07 \u202eback \x9b2J end")
    assert out == "red  back  end\n"


def test_a_full_context_forgets_the_oldest_turns_and_says_so(chat: Chat, log: Path) -> None:
    words = ["--set", "n_ctx=24", "--set", f"log={log}", "--set", "answer=a b c d", "--system", "s", "--max-tokens", "4"]
    code, _, err = chat("q q q q\nr r r r\nt t t t\n", *words)
    assert code == 0
    assert "(the context is full: the oldest 1 of the questions are forgotten, with their answers)" in err
    assert turns(asked(log)[-1]) == ["r r r r", "a b c d", "t t t t"]


def test_a_turn_that_alone_is_too_long_is_explained(chat: Chat) -> None:
    code, _, err = chat("q " * 50 + "\n", "--set", "n_ctx=24")
    assert code == 2
    assert "does not fit the context of 24 tokens. Send less text" in err


def test_a_model_that_fails_ends_a_pipe_with_1(chat: Chat) -> None:
    code, _, err = chat("one\ntwo\n", "--set", "fails=true")
    assert (code, err.count("error: the model is broken")) == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"role": "nobody"}, "unknown role 'nobody'"),
        ({"backend": "nope"}, "unknown backend 'nope'"),
        ({"backend": "llama_cpp"}, "models/package"),
    ],
)
def test_a_users_mistake_ends_with_a_message_and_2(chat: Chat, words: dict[str, str], message: str) -> None:
    code, _, err = chat("one\n", **words)
    assert (code, message in err) == (2, True), err


def test_an_answer_as_long_as_the_context_is_refused(chat: Chat, log: Path) -> None:
    code, _, err = chat("one\n", "--max-tokens", "100000000", "--set", f"log={log}")
    assert (code, log.exists()) == (2, False)
    assert "--max-tokens 100000000: the model's context has 4096 tokens, question and answer together; give fewer" in err


def test_a_closed_stdin_is_told_and_a_closed_stdout_is_no_fault() -> None:
    words = [*PROGRAM, "chat", "specialist", "--backend", "by_hand"]
    done = subprocess.run(["sh", "-c", 'exec "$0" "$@" <&-', *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: stdin is closed, so there is nobody to talk to")
    done = subprocess.run(["sh", "-c", 'exec "$0" "$@" >&-', *words], input="one\n", text=True, stderr=-1, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_answer_that_is_stopped_is_remembered_as_far_as_it_went() -> None:
    dialogue = Dialogue(commands_cases.ByHand(answer="one two three").open(ModelRef(Path(), GENERALIST)), GENERALIST)
    pieces = dialogue.say("count")
    assert next(pieces) == "one "
    pieces.close()
    assert [turn["content"] for turn in dialogue.turns] == ["count", "one "]
    assert dialogue.total.tokens == 1


def test_a_turn_without_an_answer_is_forgotten() -> None:
    dialogue = Dialogue(commands_cases.ByHand(fails=True).open(ModelRef(Path(), GENERALIST)), GENERALIST)
    with pytest.raises(Exception, match="the model is broken"):
        list(dialogue.say("count"))
    assert dialogue.turns == []


def test_a_real_model_answers(tmp_path: Path, chat: Chat) -> None:
    model = model_file()
    packaging.package_files({"generalist": model}, tmp_path / "package")
    options = ["--package", str(tmp_path / "package"), "--set", "threads=1", "--set", "n_ctx=512", "--max-tokens", "8"]
    code, out, err = chat("Say hello.\n/stats\n", *options, "--system", "", role="generalist", backend="llama_cpp")
    assert code == 0, err
    assert out.strip()
    assert re.search(r"last answer: \d+ tokens read, \d written", err)


# A real terminal


class Terminal:
    """The program at the other end of a pseudo-terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process, self.text = master, process, ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until the text has been shown, and return what was shown until its end."""
        end = time.monotonic() + 60
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.text!r}"
            self.text += os.read(self.master, 4096).decode()
        shown, _, self.text = self.text.partition(text)
        return shown + text

    def ended(self) -> int:
        return self.process.wait(timeout=60)


def _own_terminal() -> None:
    """Make stdin the controlling terminal, and listen to Ctrl-C even where the tests themselves do not (in the background)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def terminal(folder: Path, *words: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    command = [*PROGRAM, "chat", "specialist", "--backend", "by_hand", *words]
    environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment, start_new_session=True,
        preexec_fn=_own_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends_the_talk(tmp_path: Path) -> None:
    answer = "begun " + "and on " * 500
    with terminal(tmp_path, "--set", f"answer={answer}", "--set", "seconds=100") as screen:
        screen.wait_for("specialist> ")
        screen.type("go on\n")
        screen.wait_for("begun ")
        screen.type("\x03")
        screen.wait_for("(stopped)")
        screen.wait_for("specialist> ")
        screen.type("/stats\n")
        screen.wait_for("1 answers")
        screen.wait_for("specialist> ")
        screen.type("half a line")
        screen.wait_for("half a line")
        time.sleep(0.5)  # as a person would: Python misses a signal that comes while readline works
        screen.type("\x03")
        screen.wait_for("(/quit or Ctrl-D ends)")
        screen.wait_for("specialist> ")
        screen.type("\x04")
        assert screen.ended() == 0


def test_an_error_ends_a_turn_and_not_the_talk(tmp_path: Path) -> None:
    with terminal(tmp_path, "--set", "fails=true") as screen:
        for _ in range(2):
            screen.wait_for("specialist> ")
            screen.type("hello\n")
            screen.wait_for("error: the model is broken")
        screen.wait_for("specialist> ")
        screen.type("/quit\n")
        assert screen.ended() == 0


def test_a_signal_ends_the_program_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    with terminal(tmp_path, "--set", "answer=begun and on and on", "--set", "seconds=4") as screen:
        screen.wait_for("specialist> ")
        screen.type("go on\n")
        screen.wait_for("begun")
        screen.process.send_signal(signal.SIGTERM)
        screen.wait_for("terminated")
        assert screen.ended() == 130


def test_the_line_before_can_be_had_again(tmp_path: Path) -> None:
    pytest.importorskip("readline")
    log = tmp_path / "log"
    with terminal(tmp_path, "--set", f"log={log}") as screen:
        screen.wait_for("specialist> ")
        screen.type("hello\n")
        screen.wait_for("}")
        screen.wait_for("specialist> ")
        screen.type("\x10\n")  # Ctrl-P
        screen.wait_for("}")
        screen.wait_for("specialist> ")
        screen.type("\x04")
        assert screen.ended() == 0
    assert [turns(request)[-1] for request in asked(log)] == ["hello", "hello"]
