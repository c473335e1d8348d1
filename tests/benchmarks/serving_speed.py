"""Findings per second of the engine against llama-cpp-python's own chat completions in a loop, free text and JSON.

    python tests/benchmarks/serving_speed.py MODEL.gguf [REPORT.json] [--findings N] [--tokens 64] [--threads N] [--only NAME]

The loop is what a host would write: one `llama_cpp.Llama`, one `create_chat_completion` after the other, the same prompts, the
same greedy sampling, the same number of new tokens; for JSON with `response_format` and the same schema. Each gain of the
engine is then switched off, one at a time. Every row runs in a process of its own, so that its peak memory is its own; loading
is not timed. Time to first token: the median over findings, all of them asked at once, and of one finding asked alone.
Without a report, the sample of the package is asked about.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from sysscan_langgraph import LlamaCpp
from sysscan_langgraph.engine.answer import Tuning
from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_models.interfaces import GenerationRequest, ModelRef
from sysscan_models.prompts import conversation
from sysscan_models.roles import SPECIALIST
from sysscan_models.samples import document, findings, sample_report

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "analysis": {"type": "string"},
        "severity": {"enum": ["info", "low", "medium", "high", "critical"]},
        "risk_score": {"type": "integer", "minimum": 0, "maximum": 100},
        "remediation": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["analysis", "severity", "risk_score", "remediation"],
    "additionalProperties": False,
}


def prompts(options: argparse.Namespace) -> list[list[dict[str, str]]]:
    report = orjson.loads(options.report.read_bytes()) if options.report else sample_report()
    chosen = list(findings(report))[: options.findings or None]
    return [[dict(turn) for turn in conversation(SPECIALIST, document(finding))] for finding in chosen]


def measured(ask: Callable[[list[list[dict[str, str]]]], Iterator[tuple[str, str, int]]], options: argparse.Namespace) -> Any:
    """Time what yields (finding, text, new tokens so far) as it comes."""
    asked = prompts(options)
    for _ in ask(asked[:2]):
        pass  # a first answer, so that nothing is loaded in what is timed
    alone = time.perf_counter()
    next(iter(ask(asked[2:3] or asked[:1])))
    alone = time.perf_counter() - alone
    first: dict[str, float] = {}
    said: dict[str, str] = {}
    tokens: dict[str, int] = {}
    began = time.perf_counter()
    for name, text, count in ask(asked):
        first.setdefault(name, time.perf_counter() - began)
        said[name] = said.get(name, "") + text
        tokens[name] = count
    seconds = time.perf_counter() - began
    return {
        "findings_per_second": len(asked) / seconds,
        "tokens_per_second": sum(tokens.values()) / seconds,
        "seconds": seconds,
        "first_token_alone": alone,
        "first_token_median": statistics.median(first.values()),
        "valid_json": sum(map(is_json, said.values())) / len(asked),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def loop(options: argparse.Namespace, schema: dict[str, Any] | None) -> Any:
    import llama_cpp

    model = llama_cpp.Llama(
        str(options.model), n_ctx=4096, n_batch=512, n_threads=options.threads, n_threads_batch=options.threads, verbose=False
    )
    form = {"response_format": {"type": "json_object", "schema": schema}} if schema else {}

    def ask(asked: list[list[dict[str, str]]]) -> Iterator[tuple[str, str, int]]:
        for number, messages in enumerate(asked):
            count = 0
            for part in model.create_chat_completion(
                messages, max_tokens=options.tokens, temperature=0.0, repeat_penalty=1.0, stream=True, **form
            ):
                text = part["choices"][0]["delta"].get("content")
                count += text is not None
                if text is not None:
                    yield str(number), text, count

    return measured(ask, options)


def chat_llama_cpp(options: argparse.Namespace, schema: dict[str, Any] | None) -> Any:
    from langchain_community.chat_models import ChatLlamaCpp

    model = ChatLlamaCpp(
        model_path=str(options.model), n_ctx=4096, n_batch=512, n_threads=options.threads, temperature=0.0, repeat_penalty=1.0,
        max_tokens=options.tokens, verbose=False,
    )  # fmt: skip

    def ask(asked: list[list[dict[str, str]]]) -> Iterator[tuple[str, str, int]]:
        for number, messages in enumerate(asked):
            for count, part in enumerate(model.stream(messages), 1):
                yield str(number), str(part.content), count

    return measured(ask, options)


def engine(tuning: Tuning, **changes: Any) -> Callable[[argparse.Namespace, dict[str, Any] | None], Any]:
    def run(options: argparse.Namespace, schema: dict[str, Any] | None) -> Any:
        backend = LlamaCpp(threads=options.threads, **changes)
        with LlamaCppSession(ModelRef(options.model, SPECIALIST), backend, tuning) as session:

            def ask(asked: list[list[dict[str, str]]]) -> Iterator[tuple[str, str, int]]:
                requests = [
                    GenerationRequest(str(number), tuple(messages), options.tokens, 0.0, json_schema=schema)
                    for number, messages in enumerate(asked)
                ]
                for event in session.generate(requests):
                    yield event.id, event.text, event.completion_tokens

            return measured(ask, options)

    return run


ROWS: dict[str, tuple[str, Callable[[argparse.Namespace, dict[str, Any] | None], Any], bool]] = {
    "loop": ("llama_cpp.Llama in a loop", loop, False),
    "community": ("langchain-community's ChatLlamaCpp in a loop", chat_llama_cpp, False),
    "engine": ("engine", engine(Tuning()), False),
    "reproducible": ("engine, reproducible", engine(Tuning(), reproducible=True), False),
    "one": ("engine, n_parallel=1", engine(Tuning(), n_parallel=1), False),
    "unshared": ("engine, no shared prefix", engine(Tuning(shared_prefix=False)), False),
    "json-loop": ("llama_cpp.Llama in a loop, response_format", loop, True),
    "json-engine": ("engine", engine(Tuning()), True),
    "json-reproducible": ("engine, reproducible", engine(Tuning(), reproducible=True), True),
    "json-one": ("engine, n_parallel=1", engine(Tuning(), n_parallel=1), True),
    "json-unshared": ("engine, no shared prefix", engine(Tuning(shared_prefix=False)), True),
    "json-unforced": ("engine, no forced text", engine(Tuning(forced_text=False)), True),
    "json-whole": ("engine, grammar on the whole vocabulary", engine(Tuning(sample_first=False)), True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--findings", type=int, default=0, help="ask about so many; 0 for all")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", choices=ROWS, help="these rows")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        _, run, constrained = ROWS[options.row]
        print(json.dumps(run(options, SCHEMA if constrained else None)))
        return
    baselines: dict[bool, float] = {}
    print(f"{'':45} findings/s   ratio  tokens/s  first token s (alone)  valid JSON  peak MB")
    for row, (title, _, constrained) in ROWS.items():
        if (options.only and row not in options.only) or (row == "community" and find_spec("langchain_community") is None):
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--row", row]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        speed = figures["findings_per_second"]
        ratio = speed / baselines.setdefault(constrained, speed)
        print(
            f"{'JSON: ' if constrained else 'text: '}{title:45} {speed:5.2f} {ratio:6.2f}x {figures['tokens_per_second']:8.0f} "
            f"{figures['first_token_median']:11.2f} ({figures['first_token_alone']:.2f}) {figures['valid_json']:13.0%} "
            f"{figures['peak_mb']:9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
