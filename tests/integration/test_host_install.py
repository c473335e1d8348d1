"""Into the host and out again: exactly what was there, whatever happened in between."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from host_double import graph, graph_nodes_enhanced, graph_nodes_scaffold, llm_provider
from host_double.scripted import scripted

from sysscan_langgraph.host import Installation, SysscanProvider, install, uninstall
from sysscan_models.errors import UserError
from sysscan_models.roles import SPECIALIST

FINDINGS = {"raw_findings": [{"id": "a", "title": "SUID", "severity": "high", "base_severity_score": "70"}]}


def everything() -> dict[str, Any]:
    """All attributes of the double's modules, by identity; which of its null providers it has is its own matter."""
    modules = (graph, graph_nodes_scaffold, graph_nodes_enhanced, llm_provider)
    found = {f"{module.__name__}.{name}": value for module in modules for name, value in vars(module).items()}
    del found["host_double.llm_provider.accesses"]
    provider = found.pop("host_double.llm_provider._PROVIDER")
    return {**found, "provider": type(provider) if isinstance(provider, llm_provider.NullLLMProvider) else provider}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = everything()
    yield
    uninstall("host_double")
    after = everything()
    assert {name for name in before if before[name] is not after[name]} == set()


def test_in_and_out_again() -> None:
    before = everything()
    installation = install(scripted()[0], host="host_double")
    assert llm_provider.get_llm_provider() is installation.provider
    assert graph.app.invoke(FINDINGS)["summary"]["metrics"]["fallback"] is False
    assert graph.build_workflow()[1].invoke(FINDINGS)["risk_assessment"]["finding_count"] == 1
    installation.uninstall()
    installation.uninstall()
    assert {name for name, value in everything().items() if before[name] is not value} == set()
    assert "finding_count" not in graph.app.invoke(FINDINGS)["risk_assessment"]


def test_the_hosts_own_model_is_never_loaded() -> None:
    accesses = llm_provider.accesses
    with install(scripted()[0], host="host_double"):
        graph.app.invoke(FINDINGS)
    assert llm_provider.accesses == accesses


def test_async_callers_of_the_nodes_find_async_nodes() -> None:
    with install(scripted()[0], host="host_double"):
        for module in (graph, graph_nodes_scaffold, graph_nodes_enhanced):
            out = asyncio.run(module.risk_analyzer({"enriched_findings": FINDINGS["raw_findings"]}))
            assert out["risk_assessment"]["finding_count"] == 1


def test_a_context_manager_that_is_left_by_an_error() -> None:
    with pytest.raises(RuntimeError, match="out"), install(scripted()[0], host="host_double"):
        raise RuntimeError("out")
    assert isinstance(llm_provider._PROVIDER, llm_provider.NullLLMProvider)


@pytest.mark.parametrize("part", ["provider", "nodes"])
def test_one_part_alone(part: str) -> None:
    app = graph.app
    with install(scripted()[0], host="host_double", provider=part == "provider", nodes=part == "nodes"):
        assert isinstance(llm_provider._PROVIDER, SysscanProvider) is (part == "provider")
        assert (graph.app is not app) is (part == "nodes")
        with install(scripted()[0], host="host_double", provider=part != "provider", nodes=part != "nodes"):
            assert isinstance(llm_provider._PROVIDER, SysscanProvider)
            assert graph.app is not app


def test_the_provider_in_the_hosts_own_nodes() -> None:
    models, _ = scripted()
    with install(models, host="host_double", nodes=False):
        out = graph.app.invoke(FINDINGS)
    assert out["summary"]["executive_summary"].startswith("a is the worst")
    assert out["metrics"]["tokens_prompt"] == 200
    assert "refined" in out["suggested_rules"][0]["tags"]  # though the host threw away what was returned
    failing, _ = scripted(fails=("specialist", "generalist"))
    with install(failing, host="host_double", nodes=False):
        out = graph.app.invoke(FINDINGS)
    assert out["summary"]["executive_summary"].startswith("Written without the model")
    assert "warnings" not in out


def test_twice_is_refused_unless_it_is_meant() -> None:
    first = install(scripted()[0], host="host_double")
    with pytest.raises(
        UserError, match=r"provider and nodes of sysscan-models are installed already; call uninstall\(\) first"
    ):
        install(scripted()[0], host="host_double")
    assert llm_provider.get_llm_provider() is first.provider
    app = graph.app
    with install(scripted()[0], host="host_double", replace=True) as second:
        assert llm_provider.get_llm_provider() is second.provider
        with pytest.raises(UserError, match="another installation was put on top of this provider; uninstall that one first"):
            first.uninstall()
    assert llm_provider.get_llm_provider() is first.provider
    assert graph.app is app
    install(scripted()[0], host="host_double", nodes=False, replace=True)
    uninstall("host_double")
    assert isinstance(llm_provider._PROVIDER, llm_provider.NullLLMProvider)
    install(scripted()[0], host="host_double").uninstall()


def test_what_somebody_else_put_there_since_stays() -> None:
    class Other:
        pass

    before, own = llm_provider._PROVIDER, graph.suggest_rules
    installation = install(scripted()[0], host="host_double")
    other = Other()
    llm_provider.set_llm_provider(other)
    wrapper, graph.suggest_rules = graph.suggest_rules, other
    installation.uninstall()
    assert llm_provider._PROVIDER is other
    assert graph.suggest_rules is other
    llm_provider.set_llm_provider(before)
    graph.suggest_rules = own
    assert wrapper is not own


def test_a_graph_that_the_host_loads_anew_keeps_our_nodes_and_loses_them_at_the_end() -> None:
    kept = dict(vars(graph))
    try:
        with install(scripted()[0], host="host_double"):
            importlib.reload(graph)
            assert graph.app.invoke(FINDINGS)["risk_assessment"]["finding_count"] == 1
        assert "finding_count" not in graph.app.invoke(FINDINGS)["risk_assessment"]
        assert graph.risk_analyzer is graph_nodes_scaffold.risk_analyzer
    finally:
        vars(graph).update(kept)


def test_a_graph_that_the_host_failed_to_build_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict(vars(graph))
    try:
        for name in ("app", "workflow", "enhanced_summarize_host_state"):
            monkeypatch.setattr(graph, name, None)
        with install(scripted()[0], host="host_double"):
            assert graph.app.invoke(FINDINGS)["summary"]["metrics"]["fallback"] is False
    finally:
        monkeypatch.undo()
        vars(graph).update(kept)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"the host 'no_such_host' cannot be imported .* name another package with host="):
        install(scripted()[0], host="no_such_host")


def test_a_host_of_another_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(graph_nodes_scaffold, "risk_analyzer")
        patch.delattr(graph, "suggest_rules")
        with pytest.raises(
            UserError, match=r"lacks graph.suggest_rules, graph_nodes_scaffold.risk_analyzer\. Expected .* agent 5"
        ):
            install(scripted()[0], host="host_double")
        with install(scripted()[0], host="host_double", nodes=False):
            pass
    (tmp_path / "empty_host").mkdir()
    (tmp_path / "empty_host" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="the host 'empty_host' has no module 'llm_provider' that can be imported"):
        install(scripted()[0], host="empty_host")


def test_a_failure_in_the_middle_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything()
    with monkeypatch.context() as patch:
        patch.setattr(graph, "build_workflow", lambda: (None, None))
        with pytest.raises(UserError, match=r"build_workflow\(\) made no graph; is langgraph installed\?"):
            install(scripted()[0], host="host_double")
    assert {name for name, value in everything().items() if before[name] is not value} == set()
    install(scripted()[0], host="host_double").uninstall()


def test_nothing_and_models_without_a_role() -> None:
    with pytest.raises(UserError, match="nothing to install: provider and nodes are both False"):
        install(scripted()[0], host="host_double", provider=False, nodes=False)
    with pytest.raises(UserError, match="unknown role 'generalist'"):
        install(scripted({"specialist": SPECIALIST})[0], host="host_double")


def test_the_host_may_be_a_module() -> None:
    import host_double

    assert isinstance(host_double, ModuleType)
    with install(scripted()[0], host=host_double) as installation:
        assert installation.host == "host_double"
        assert isinstance(installation, Installation)


def test_a_folders_models_are_closed_and_given_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    models, _ = scripted()
    asked: list[Any] = []
    monkeypatch.setattr(
        "sysscan_langgraph.host.analyst.serve", lambda *args, **options: asked.append((args, options)) or models
    )
    install(models, host="host_double").uninstall()
    models.session("specialist")
    install("folder", host="host_double").uninstall()
    assert asked == [(("folder",), {"reproducible": True})]  # the host's protocol: the same arguments, the same answer
    with pytest.raises(UserError, match="closed"):
        models.session("specialist")


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, sysscan_langgraph.host as host; host.__all__; dir(host);"
        "heavy = {'llama_cpp', 'langgraph', 'langchain_core', 'torch', 'transformers', 'pydantic', 'sys_scan_graph_agent'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'instal'"):
        _ = importlib.import_module("sysscan_langgraph.host").instal
