"""Many analyses of one compiled graph at once, in one event loop: errors, mixed-up answers, memory.

    python tests/benchmarks/concurrent_graphs.py PACKAGE_DIR [--graphs 100] [--findings 1] [--tokens 48]

Each graph gets a report of its own; its answer must name its own host and its own findings. The baseline is the same number of
analyses one after the other (a tenth of them, extrapolated).
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from pathlib import Path
from typing import Any

from sysscan_langgraph import create_analysis_graph, serve
from sysscan_models.samples import sample_report
from sysscan_models.scan_report import findings


def report(number: int, count: int) -> dict[str, Any]:
    chosen = findings(sample_report())
    own = [{**chosen[(number + place) % len(chosen)], "id": f"{number}-{place}"} for place in range(count)]
    return {"meta": {"hostname": f"host-{number}"}, "summary": {}, "results": [{"scanner": "mixed", "findings": own}]}


def faults(number: int, analysis: dict[str, Any]) -> list[str]:
    ids = [finding["finding_id"] for finding in analysis["analyses"]]
    wrong = [] if analysis["host"] == f"host-{number}" else [f"graph {number} answered for {analysis['host']}"]
    return wrong + [f"graph {number} has finding {name}" for name in ids if not name.startswith(f"{number}-")]


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def measure(options: argparse.Namespace) -> None:
    with serve(options.package) as models:
        graph = create_analysis_graph(models, max_tokens=options.tokens, report_tokens=options.tokens, rationales=0)
        await graph.ainvoke({"report": report(0, 1)})
        before, started = megabytes(), time.monotonic()
        for number in range(few := max(1, options.graphs // 10)):
            await graph.ainvoke({"report": report(number, options.findings)})
        alone = (time.monotonic() - started) / few
        started = time.monotonic()
        asked = (graph.ainvoke({"report": report(number, options.findings)}) for number in range(options.graphs))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        seconds = time.monotonic() - started
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    analyses = [answer["analysis"] for answer in answers if not isinstance(answer, BaseException)]
    mixed = [fault for number, analysis in enumerate(analyses) for fault in faults(number, analysis)]
    warnings = sum(len(analysis["warnings"]) for analysis in analyses)
    print(f"{options.graphs} graphs at once: {seconds:.1f} s, {seconds / options.graphs:.3f} s each")
    print(f"one after the other: {alone:.3f} s each, ratio {alone * options.graphs / seconds:.2f}")
    print(f"errors {len(errors)}, answers of another graph {len(mixed)}, warnings {warnings}")
    print(f"peak memory: {before} MB with one graph, {megabytes()} MB with {options.graphs}")
    for fault in [*map(repr, errors), *mixed][:5]:
        print(fault)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--findings", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    asyncio.run(measure(parser.parse_args()))
