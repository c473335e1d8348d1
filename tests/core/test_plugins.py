"""Plugins: every hook documented and used, choices by name, and one broken plugin that harms nobody else."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sysscan_models import hookimpl, hookspecs
from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, Evaluation, QuantizedModel
from sysscan_models.documents import Document
from sysscan_models.errors import MissingExtra, UserError
from sysscan_models.interfaces import Backend, Decision, Evaluator, Member, Quantizer, Reader, Router, Session, Source, Trainer
from sysscan_models.plugins import EXTRAS, KINDS, as_text, plugin_manager
from sysscan_models.prompts import GeneralistResponse
from sysscan_models.roles import ModelRole

ROOT = Path(__file__).parents[2]


class MyReader(Reader):
    """Reads nothing."""

    name = "mine"

    def reads(self, name: str) -> bool:
        return False

    def read(self, member: Member) -> Iterator[Document]:
        return iter(())


class MyRouter(Router):
    """Sends everything to one role."""

    name = "mine"

    def route(self, document: Document) -> Decision:
        return Decision("specialist", 1.0)


class MySource(Source):
    """Has no model."""

    name = "mine"

    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        return BaseCheckpoint(reference=ref)


class MyTrainer(Trainer):
    """Trains nothing.

    In many steps.
    """

    name = "mine"

    def train(self, job: Any) -> Checkpoint:
        return Checkpoint(kind="full")


class MyQuantizer(Quantizer):
    """Quantizes nothing."""

    name = "mine"

    def quantize(self, merged: Any, out: Path, role: Any = None) -> QuantizedModel:
        return QuantizedModel(file=out.name, type="F32")


class MyEvaluator(Evaluator):
    """Measures nothing."""

    name = "mine"

    def evaluate(self, models: Any, splits: Any, out_dir: Path) -> Evaluation:
        return Evaluation()


class MyBackend(Backend):
    """Serves nothing."""

    name = "mine"

    def open(self, model: Any) -> Session:
        raise UserError("nothing to open")


MY_ROLE = ModelRole("mine", "Does nothing", "Say nothing.", GeneralistResponse, {"executive_summary": "content"})

EXAMPLES: Mapping[str, Any] = {
    "roles": MY_ROLE,
    "readers": MyReader,
    "routers": MyRouter,
    "sources": MySource,
    "trainers": MyTrainer,
    "quantizers": MyQuantizer,
    "evaluators": MyEvaluator,
    "backends": MyBackend,
}


def plugin(name: str = "my_plugin", **hooks: Callable[..., Any]) -> ModuleType:
    """Return a module whose hooks, by kind, return what the given functions return."""
    module = ModuleType(name)
    for kind, function in hooks.items():
        setattr(module, f"sysscan_register_{kind}", hookimpl(function))
    return module


def returning(kind: str, *items: Any, name: str = "my_plugin") -> ModuleType:
    return plugin(name, **{kind: lambda: list(items)})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Give a function that installs a module with an entry point, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{hookspecs.PROJECT}]\n{name} = {name}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


GOOD_PLUGIN = """
from sysscan_models import hookimpl
from sysscan_models.interfaces import Trainer

class Good(Trainer):
    '''A good trainer.'''
    name = "good"
    def train(self, job): ...

@hookimpl
def sysscan_register_trainers():
    return [Good]
"""

# every hook


HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("sysscan_")}


def test_there_is_a_hook_for_every_kind_and_an_example_of_each() -> None:
    assert HOOKS.keys() == {f"sysscan_register_{kind}" for kind in KINDS}
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    doc = inspect.getdoc(HOOKS[hook]) or ""
    assert re.fullmatch(r"Return .+; called once, when the plugin manager is built\.", doc), doc
    assert "Sequence[" in HOOKS[hook].__annotations__["return"]
    assert hook in (ROOT / "plugins" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_registers_by_name(kind: str) -> None:
    registry = plugin_manager(returning(kind, EXAMPLES[kind]), entry_points=False)
    assert registry.get(kind, "mine") is EXAMPLES[kind]
    assert registry.owners[kind, "mine"] == "my_plugin"
    assert "mine" in registry.names(kind)
    assert registry.names(kind) == sorted(registry.names(kind))


def test_a_manager_is_fresh_each_time() -> None:
    first = plugin_manager(returning("trainers", MyTrainer), entry_points=False)
    second = plugin_manager(entry_points=False)
    assert first.manager is not second.manager
    assert "mine" not in second.names("trainers")
    assert second.names("roles") == ["generalist", "specialist"]


def test_a_class_instance_may_be_a_plugin() -> None:
    class Plugin:
        @hookimpl
        def sysscan_register_trainers(self) -> list[type[Trainer]]:
            return [MyTrainer]

    assert plugin_manager(Plugin(), entry_points=False).get("trainers", "mine") is MyTrainer


# what is refused


def test_a_name_registered_twice_is_refused_with_both_owners() -> None:
    with pytest.raises(UserError, match="trainer 'mine' is registered twice, by 'one' and by 'two'; uninstall one of the two"):
        plugin_manager(
            returning("trainers", MyTrainer, name="one"), returning("trainers", MyTrainer, name="two"), entry_points=False
        )


def test_a_plugin_given_twice_is_refused() -> None:
    mine = returning("trainers", MyTrainer)
    with pytest.raises(UserError, match="plugin 'my_plugin' cannot be registered"):
        plugin_manager(mine, mine, entry_points=False)


def test_an_unknown_name_lists_the_valid_ones_and_the_closest() -> None:
    registry = plugin_manager(returning("trainers", MyTrainer), entry_points=False)
    with pytest.raises(UserError, match=r"^unknown trainer 'mien'\. Did you mean 'mine'\? Valid choices: mine$"):
        registry.get("trainers", "mien")
    with pytest.raises(UserError, match="Valid choices: none are registered"):
        registry.get("evaluators", "x")


def test_a_misspelt_hook_is_refused_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"unknown hook 'sysscan_register_trainer'. Did you mean 'sysscan_register_trainers'"):
        plugin_manager(returning("trainer", MyTrainer), entry_points=False)


def test_a_hook_without_its_decorator_is_refused() -> None:
    module = ModuleType("my_plugin")
    module.sysscan_register_trainers = lambda: [MyTrainer]  # type: ignore[attr-defined]

    class Plugin:
        def sysscan_register_trainers(self) -> list[type[Trainer]]:
            return [MyTrainer]

    for unmarked in (module, Plugin()):
        with pytest.raises(UserError, match=r"sysscan_register_trainers lacks the decorator @sysscan_models\.hookimpl"):
            plugin_manager(unmarked, entry_points=False)


def test_a_hook_that_wants_arguments_is_refused() -> None:
    with pytest.raises(UserError, match=r"plugin 'my_plugin' cannot be registered: .*config"):
        plugin_manager(plugin(trainers=lambda config: [config]), entry_points=False)


@pytest.mark.parametrize(
    ("kind", "returned", "message"),
    [
        ("trainers", [MyReader], "expected subclasses of Trainer with a `name`"),
        ("trainers", [MyTrainer()], "expected subclasses of Trainer with a `name`"),
        ("trainers", ["mine"], "expected subclasses of Trainer with a `name`"),
        ("roles", [ModelRole], "expected instances of ModelRole with a `name`"),
        ("trainers", MyTrainer, "expected a list"),
        ("trainers", None, "expected a list"),
        ("trainers", [type("Nameless", (MyTrainer,), {"name": ""})], "with a `name`"),
        ("trainers", [type("Half", (Trainer,), {"name": "half"})], "which lacks the method train"),
    ],
)
def test_what_a_hook_may_not_return(kind: str, returned: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"plugin 'my_plugin': sysscan_register_{kind} returned .*{message}"):
        plugin_manager(plugin(**{kind: lambda: returned}), entry_points=False)


def test_a_fault_of_a_given_plugin_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        plugin_manager(plugin(trainers=lambda: 1 / 0), entry_points=False)


# installed plugins, whole and broken


def test_installed_plugins_are_found_by_their_entry_point(install: Callable[[str, str], None]) -> None:
    install("good_plugin", GOOD_PLUGIN)
    registry = plugin_manager()
    assert registry.owners["trainers", "good"] == "good_plugin"
    assert "good" not in plugin_manager(entry_points=False).names("trainers")


BROKEN = {
    "a missing library": ("import torch_xla.core", "ModuleNotFoundError: No module named 'torch_xla'"),
    "a syntax error": ("def", "SyntaxError: "),
    "an exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "a misspelt hook": (
        GOOD_PLUGIN.replace("register_trainers", "register_trainer"),
        "Did you mean 'sysscan_register_trainers'",
    ),
    "a hook that fails": (
        GOOD_PLUGIN.replace("return [Good]", "import torch_xla"),
        "ModuleNotFoundError: No module named 'torch_xla'",
    ),
    "a hook that returns rubbish": (GOOD_PLUGIN.replace("[Good]", "[1]"), "returned 1; expected subclasses of Trainer"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_shown_and_harms_no_other(install: Callable[[str, str], None], fault: str) -> None:
    source, reason = BROKEN[fault]
    install("bad_plugin", source)
    install("good_plugin", GOOD_PLUGIN)
    registry = plugin_manager()
    assert registry.get("trainers", "good").name == "good"
    (broken,) = [plugin for plugin in registry.broken if plugin.name == "bad_plugin"]
    assert reason in broken.reason
    with pytest.raises(UserError, match=r"trainer 'bad_plugin' comes from plugin 'bad_plugin', which is broken: .*--traceback"):
        registry.get("trainers", "bad_plugin")
    text = as_text(registry)
    assert re.search(r"^trainer +good +good_plugin +A good trainer\.$", text, re.MULTILINE)
    assert re.search(r"^bad_plugin +bad_plugin +\S", text.partition("broken plugins")[2], re.MULTILINE)
    assert "Traceback" not in text
    assert f"\nbad_plugin\n{broken.traceback.rstrip()}" in as_text(registry, with_traceback=True)


def test_choosing_what_a_broken_plugin_may_have_brought_names_it_and_its_extra(install: Callable[[str, str], None]) -> None:
    install("bad_plugin", "import torch_xla")
    registry = plugin_manager()
    extra = r"pip install 'sysscan-models\[tpu\]'"
    with pytest.raises(UserError, match=f"which is broken: .*torch_xla.* Try: {extra}"):
        registry.get("quantizers", "bad_plugin")
    with pytest.raises(UserError, match=f"unknown quantizer 'tpu_format'.* may provide it: bad_plugin .*torch_xla.*{extra}"):
        registry.get("quantizers", "tpu_format")
    assert "sysscan-models[tpu]" in as_text(registry)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("raise ModuleNotFoundError('x', name='peft.tuners')", "pip install 'sysscan-models[train]'"),
        ("raise ModuleNotFoundError('x', name='llama_cpp')", "pip install 'sysscan-models[gguf]'"),
        ("raise ModuleNotFoundError('x', name='langchain_core.messages')", "pip install 'sysscan-models[langgraph]'"),
        ("raise ModuleNotFoundError('x', name='their_own')", "install the Python package 'their_own'"),
        (
            "from sysscan_models.errors import MissingExtra; raise MissingExtra('x', 'gguf', 'gguf')",
            "pip install 'sysscan-models[gguf]'",
        ),
        ("raise ValueError('x')", ""),
    ],
)
def test_the_advice_names_the_extra_that_is_lacking(install: Callable[[str, str], None], source: str, advice: str) -> None:
    install("bad_plugin", source)
    (broken,) = [plugin for plugin in plugin_manager().broken if plugin.name == "bad_plugin"]
    assert broken.advice == advice
    assert MissingExtra("x", "gguf", "gguf").module == "gguf"


def test_every_extra_that_is_advised_exists_and_brings_the_module() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    distributions = {"llama_cpp": "llama-cpp-python"}
    for module, extra in EXTRAS.items():
        wanted = distributions.get(module, module.replace("_", "-"))
        names = {re.match(r"[\w-]+", requirement)[0].replace("_", "-") for requirement in extras[extra]}  # type: ignore[index]
        assert wanted in names, (module, extra)


def test_two_installed_plugins_that_claim_one_name_are_both_named(install: Callable[[str, str], None]) -> None:
    install("good_plugin", GOOD_PLUGIN)
    install("other_plugin", GOOD_PLUGIN)
    with pytest.raises(UserError, match="trainer 'good' is registered twice, by 'good_plugin' and by 'other_plugin'"):
        plugin_manager()


def test_the_table_shows_kind_name_owner_and_first_line() -> None:
    text = as_text(plugin_manager(returning("trainers", MyTrainer), returning("roles", MY_ROLE, name="r"), entry_points=False))
    lines = [re.split(r" {2,}", line) for line in text.splitlines()]
    assert lines[0] == ["kind", "name", "plugin", "what it is"]
    assert ["trainer", "mine", "my_plugin", "Trains nothing."] in lines
    assert ["role", "mine", "r", "Does nothing"] in lines
    assert "In many steps" not in text
    assert "broken" not in text


def test_brackets_in_a_docstring_are_text_not_markup() -> None:
    odd = type("Odd", (MyTrainer,), {"name": "odd", "__doc__": "Trains [red]nothing[/red] :smile:."})
    assert "Trains [red]nothing[/red] :smile:." in as_text(plugin_manager(returning("trainers", odd), entry_points=False))


def test_the_command_lists_the_bundled_plugins() -> None:
    done = subprocess.run([sys.executable, "-m", "sysscan_models", "plugins"], capture_output=True, text=True, check=True)
    assert re.search(r"^role +specialist +sysscan_models\.roles", done.stdout, re.MULTILINE)


def test_the_generated_parts_of_the_documentation_are_current() -> None:
    files = ["plugins/README.md"]
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run `python -m cogapp -r {' '.join(files)}`\n{done.stdout}{done.stderr}"


def test_a_namespace_object_may_be_a_plugin() -> None:
    mine = SimpleNamespace(sysscan_register_trainers=hookimpl(lambda: [MyTrainer]))
    assert plugin_manager(mine, entry_points=False).get("trainers", "mine") is MyTrainer
