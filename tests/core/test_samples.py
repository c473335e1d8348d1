from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from sysscan_models import hookimpl, samples
from sysscan_models.errors import DataError, UserError
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.packaging import package_files
from sysscan_models.plugins import plugin_manager
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import GENERALIST, SPECIALIST
from sysscan_models.samples import comparison, printable
from sysscan_models.samples.answers import judge
from sysscan_models.testing import stub_plugin

pytest_plugins = ["sysscan_models.testing"]

ESC = "\x1b"
HOSTILE = (
    f"{ESC}[31mred{ESC}[0m {ESC}]0;title\x07{ESC}]8;;http://x{ESC}\\link{ESC}]8;;{ESC}\\ {ESC}[2J\x9b1m\rover\x08\x00"
    f" [bold]markup[/bold] \u202egnp.exe {ESC}]52;c;unterminated and the rest"
)


Says = Callable[[GenerationRequest], "str | Exception"]


class ScriptedSession(Session):
    """Says what it is told, in pieces, the last request first; an exception is what goes wrong."""

    def __init__(self, says: Says) -> None:
        self.says = says

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in reversed(requests):
            text = self.says(request)
            if isinstance(text, Exception):
                yield GenerationEvent(request.id, "", "error", error=text)
                continue
            yield GenerationEvent(request.id, text[:3])
            yield GenerationEvent(request.id, text[3:], "stop", 5, len(text.split()))

    def close(self) -> None:
        pass


def scripted(says: Says) -> object:
    """Return a plugin whose backend `scripted` says what the function returns."""

    class Scripted(Backend):
        name: ClassVar[str] = "scripted"

        def open(self, model: ModelRef) -> Session:
            return ScriptedSession(says)

    class Plugin:
        @hookimpl
        def sysscan_register_backends(self) -> list[type[Backend]]:
            return [Scripted]

    return Plugin()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Package the header of a GGUF file: enough for backends that do not look at it."""
    for name in ("specialist", "generalist"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(60))
    models = {name: tmp_path / f"{name}.gguf" for name in ("specialist", "generalist")}
    return package_files(models, tmp_path / "package").root


def asked(package: Path, says: Says, question: str | None = None, **options: Any) -> list[str]:
    registry = plugin_manager(scripted(says), entry_points=False)
    role = options.pop("role", "specialist")
    return list(samples.ask(role, question, folder=package, backend="scripted", registry=registry, **options))


# Reports


def test_the_sample_report_has_findings_of_every_severity_most_severe_first() -> None:
    found = samples.findings(samples.sample_report())
    assert len(found) == samples.sample_report()["summary"]["finding_count_total"]
    order = ["critical", "high", "medium", "low", "info"]
    ranks = [order.index(finding["severity"]) for finding in found]
    assert ranks == sorted(ranks)
    assert set(ranks) == set(range(5))
    assert all(finding["scanner"] and finding["id"] for finding in found)


def test_equally_severe_findings_are_ordered_by_score_then_as_they_come() -> None:
    def finding(name: str, severity: Any, score: Any) -> dict[str, Any]:
        return {"id": name, "title": name, "severity": severity, "base_severity_score": score}

    first = [finding("a", "low", "10"), finding("b", "odd", "99"), finding("c", "low", 40), finding("d", "low", None)]
    second = [finding("e", "critical", "1"), finding("f", "low", "10")]
    report = {"results": [{"scanner": "x", "findings": first}, {"findings": second}]}
    found = samples.findings(report)
    assert [item["id"] for item in found] == ["e", "c", "a", "f", "d", "b"]
    assert found[0]["scanner"] == ""
    assert "scanner" not in first[0]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "the report has list instead of an object; expected a scan report in schema v2"),
        ({}, "the report has no list `results`"),
        ({"results": [{"scanner": "x"}]}, r"results\[0\] has no list `findings`"),
        ({"results": [3]}, r"results\[0\] has int instead of an object"),
        ({"results": [{"findings": ["text"]}]}, r"results\[0\].findings\[0\] is no finding; expected an object"),
        ({"results": [{"findings": [{"id": 1}]}]}, r"findings\[0\] is no finding"),
        ({"results": [{"findings": [{"title": "t", "metadata": [1]}]}]}, r"findings\[0\].metadata is no object"),
    ],
)
def test_what_is_no_report_is_refused(report: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        samples.findings(report)


def test_a_report_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report .*absent.json cannot be read: No such file"):
        samples.read_report(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DataError, match=r"report .*text.json is not JSON"):
        samples.read_report(tmp_path / "text.json")


# What reaches the terminal


def test_nothing_that_steers_a_terminal_is_printed() -> None:
    clean = printable(HOSTILE)
    assert clean == "red link over [bold]markup[/bold] gnp.exe 52;c;unterminated and the rest"
    assert printable("a\r\nb\u2028c\td") == "a\nb\nc\td"
    assert printable("naïve 日本 👩\u200d🔬 \ud800") == "naïve 日本 👩\u200d🔬 "
    for code in (*range(32), *range(127, 160)):
        assert printable(f"a{chr(code)}") in ("a", "a\n") or chr(code) in "\t\n", code


@pytest.mark.parametrize("piece", [f"{ESC}]", "\x9d", f"{ESC}P", "\x90", f"{ESC}[", f"{ESC}[0;", "\x9b0", ESC])
def test_hostile_text_does_not_make_it_slow(piece: str) -> None:
    started = time.process_time()
    printable(piece * 200_000)
    assert time.process_time() - started < 5


# Judging


@pytest.mark.parametrize(
    ("text", "valid", "fault"),
    [
        ('{"severity": "high", "techniques": ["T1548.001"]}', True, ""),
        ('  {"analysis": "x"}\n', True, ""),
        ('{"severity": "grave", "mood": 1}', True, "does not fit the response model (severity: Input should be"),
        ("{}", True, "says nothing"),
        ("[1]", False, "JSON, but not an object (list)"),
        ('```json\n{"analysis": "x"}\n```', False, "not JSON"),
        ('{"analysis": "x', False, "not JSON"),
        ("", False, "not JSON"),
    ],
)
def test_answers_are_judged_by_the_roles_response_model(text: str, valid: bool, fault: str) -> None:
    fields, found = judge(SPECIALIST, text)
    assert (fields is not None) is valid
    assert found.startswith(fault)
    assert bool(found) is bool(fault)


# Asking


def test_a_question_is_asked_in_the_roles_own_words(package: Path) -> None:
    requests = []

    def says(request: GenerationRequest) -> str:
        requests.append(request)
        return '{"executive_summary": "All is well.", "key_findings": ["one", "two"]}'

    (text,) = asked(package, says, "Is sk-abcdefghijklmnopqrstuvwx safe?", role="generalist", max_tokens=9)
    (request,) = requests
    assert request.messages[0] == {"role": "system", "content": GENERALIST.system_prompt}
    assert request.messages[1] == {"role": "user", "content": "Is [SK_TOKEN] safe?"}
    assert (request.max_tokens, request.json_schema) == (9, None)
    assert "executive_summary: All is well.\nkey_findings: one, two\n" in text
    assert "valid JSON, fits the response model; ended by itself; 7 tokens in " in text


def test_the_most_severe_findings_are_asked_about_as_training_renders_them(package: Path) -> None:
    requests = []

    def says(request: GenerationRequest) -> str:
        requests.append(request)
        return "I do not\tknow."

    texts = asked(package, says, count=2, constrained=True)
    severest = samples.findings(samples.sample_report())[:2]
    expected = [tuple(conversation(SPECIALIST, finding_document(finding))) for finding in severest]
    assert [request.messages for request in requests] == expected[::-1]
    assert requests[0].json_schema == SPECIALIST.response_model.model_json_schema()
    heading = f"# {severest[0]['scanner']} {severest[0]['id']}: {severest[0]['title']}"
    assert texts[0].startswith(f"{heading}\nI do not    know.\n(not valid JSON; ended by itself; 4 tokens in ")


def test_what_does_not_fit_is_shown_all_the_same_and_said(package: Path) -> None:
    (text,) = asked(package, lambda _: '{"severity": "grave", "more": {"a": [1, null]}}')
    assert 'severity: grave\nmore: {"a":[1,null]}\n(valid JSON, does not fit the response model (severity: ' in text


def test_one_finding_can_be_chosen_from_a_report(package: Path, tmp_path: Path) -> None:
    report = {"results": [{"scanner": "s", "findings": [{"id": "a b", "title": "One"}, {"id": 2, "title": "Two"}]}]}
    (tmp_path / "report.json").write_bytes(orjson.dumps(report))
    (text,) = asked(package, lambda _: "x", report=tmp_path / "report.json", finding_id="2")
    assert text.startswith("# s 2: Two\n")
    with pytest.raises(UserError, match=r"no finding 'c' in the report; it has a b, 2$"):
        asked(package, lambda _: "x", report=tmp_path / "report.json", finding_id="c")
    with pytest.raises(UserError, match=r"no finding 'c' in the report; it has .* and \d+ more"):
        asked(package, lambda _: "x", finding_id="c")
    (tmp_path / "report.json").write_bytes(b'{"results": []}')
    with pytest.raises(UserError, match=r"report.json holds no findings; there is nothing to ask about"):
        asked(package, lambda _: "x", report=tmp_path / "report.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "Why?", "finding_id": "1"}, "a QUESTION, or findings"),
        ({"question": " "}, "the QUESTION is empty"),
        ({"count": 0}, "--count 0: expected 1 or more"),
        ({"role": "captain"}, "unknown role 'captain'"),
        ({"folder": Path("absent")}, "absent has no manifest.json"),
        ({"backend": "vllm"}, "unknown backend 'vllm'"),
    ],
)
def test_what_cannot_be_asked_is_refused(package: Path, options: dict[str, Any], message: str) -> None:
    given = {"role": "specialist", "question": None, "folder": package, "backend": "stub", **options}
    registry = plugin_manager(stub_plugin, entry_points=False)
    with pytest.raises(UserError, match=message):
        list(samples.ask(given.pop("role"), given.pop("question"), registry=registry, **given))


def test_findings_and_answers_are_only_text_on_the_terminal(package: Path, tmp_path: Path) -> None:
    finding = {"id": HOSTILE, "title": HOSTILE, "description": "d"}
    (tmp_path / "report.json").write_bytes(orjson.dumps({"results": [{"scanner": HOSTILE, "findings": [finding]}]}))
    for answer in (HOSTILE, orjson.dumps({HOSTILE: HOSTILE}).decode(), orjson.dumps({"findings": [HOSTILE, 1]}).decode()):
        (text,) = asked(package, lambda _, answer=answer: answer, report=tmp_path / "report.json")
        assert printable(text) == text
        assert "[bold]markup[/bold]" in text
    with pytest.raises(UserError) as error:
        asked(package, lambda _: "", report=tmp_path / "report.json", finding_id="c")
    assert printable(str(error.value)) == str(error.value)


# Before and after


@pytest.fixture
def stub_run(sysscan_stub_pipeline: Any) -> Any:
    pipeline = sysscan_stub_pipeline()
    pipeline.run()
    return pipeline


def test_base_and_tuned_models_are_asked_about_the_same_findings(stub_run: Any) -> None:
    text = comparison.before_and_after(stub_run, count=2, backend="stub")
    found = samples.findings(samples.sample_report())[:2]
    for role in ("specialist", "generalist"):
        assert text.count(f"{role}: {found[0]['scanner']} {found[0]['id']}: {found[0]['title'][:20]}") == 1
        assert f"{role}: valid JSON 2/2 -> 2/2, fits the response model 2/2 -> 2/2, ended by itself 2/2 -> 2/2" in text
    assert "before (base model)" in text
    assert "after (tuned model)" in text
    assert max(map(len, text.splitlines())) <= 100
    written = (stub_run.layout.models / "before_and_after.md").read_text(encoding="utf-8")
    assert written.count("**Before**") == written.count("**After**") == 4


def test_the_base_is_quantized_once_for_all_roles_and_runs(stub_run: Any) -> None:
    made = comparison.base_quantized(stub_run, "specialist")
    assert made.path.parent == stub_run.layout.bases
    assert made.role == ""
    time_made = made.path.stat().st_mtime_ns
    assert comparison.base_quantized(stub_run, "generalist") == made
    assert made.path.stat().st_mtime_ns == time_made
    assert made.path.read_bytes() != stub_run.quantized("specialist").path.read_bytes()
    made.path.write_bytes(b"")
    assert comparison.base_quantized(stub_run, "specialist").path.stat().st_size > 0


def answer(text: str, role: Any = SPECIALIST, title: str = "A finding") -> samples.Answer:
    document = finding_document({"id": "1", "title": title})
    return samples.Answer(document, text, "length", 5, 4, 2.0, *judge(role, text))


def test_the_columns_stand_side_by_side() -> None:
    pair = comparison.Comparison(SPECIALIST, [answer("I think\nit is bad")], [answer('{"severity": "high"}')])
    text = comparison.as_text([pair], width=110)
    (line,) = [line for line in text.splitlines() if "I think" in line]
    assert "severity: high" in line
    assert line.index("severity: high") > 50
    left = " ".join(line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|"))
    assert left.endswith("I think it is bad not valid JSON; not ended by itself (length); 4 tokens in 2.0 s, 2 tokens/s")
    assert text.endswith("specialist: valid JSON 0/1 -> 1/1, fits the response model 0/1 -> 1/1, ended by itself 0/1 -> 0/1")


def test_hostile_answers_stay_text_in_both_forms() -> None:
    hostile = HOSTILE + "\n```\n# no heading <script>alert(1)</script>\n````"
    pair = comparison.Comparison(SPECIALIST, [answer(hostile, title=hostile)], [answer(hostile)])
    text = comparison.as_text([pair], width=120)
    assert printable(text) == text
    assert text.count("[bold]markup[/bold]") == 3
    markdown = comparison.as_markdown([pair])
    assert printable(markdown) == markdown
    fences = [line for line in markdown.splitlines() if line.startswith("`````")]
    assert fences == ["`````text", "`````"] * 2
    outside = markdown.split("`````")[::2]
    assert not any("<script>" in part or "\n# no heading" in part for part in outside)


def test_a_terminals_width_is_taken_and_a_pipe_gets_at_least_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert comparison._width() == 100
    monkeypatch.setenv("COLUMNS", "140")
    assert comparison._width() == 140
    monkeypatch.setattr("sys.stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("COLUMNS", "72")
    assert comparison._width() == 72


def test_answers_of_a_backend_that_finishes_in_another_order_are_matched(sysscan_stub_pipeline: Any) -> None:
    plugin = scripted(lambda request: request.messages[-1]["content"].splitlines()[0])
    pipeline = sysscan_stub_pipeline(plugins=(plugin,))
    pipeline.run()
    text = comparison.before_and_after(pipeline, count=3, backend="scripted")
    titles = [finding["title"] for finding in samples.findings(samples.sample_report())[:3]]
    places = [text.index(title[:25]) for title in titles]
    assert places == sorted(places)


def test_answers_are_told_in_the_order_of_the_findings_whatever_finishes_first(package: Path) -> None:
    told = asked(package, lambda request: f"answer {request.id}", count=3)  # the backend finishes the last one first
    assert [f"answer {number}" in text for number, text in enumerate(told)] == [True] * 3


def test_a_request_that_failed_is_an_error_of_the_command(package: Path) -> None:
    with pytest.raises(UserError, match="it broke"):
        asked(package, lambda _: UserError("it broke"), "why?")


def test_a_real_model_can_be_asked(tmp_path: Path, stub_run: Any) -> None:
    texts = list(samples.ask("specialist", "Why?", folder=stub_run.layout.package, max_tokens=4))
    assert len(texts) == 1
    assert "4 tokens in " in texts[0] or "ended by itself" in texts[0]
