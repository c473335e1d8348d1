"""The doctor: what it finds with nothing configured, about tokens without asking, and what it tells of a local hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sysscan_models import doctor, machine
from sysscan_models.config import RunConfig, load_config
from sysscan_models.doctor import Check, hardware, hub, installation

TOKEN = "hf_" + "aB3" * 11
OTHER = "hf_" + "zY9" * 11
GATED, OPEN = "meta-llama/Meta-Llama-3-8B", "mistralai/Mixtral-8x7B-Instruct-v0.1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home without a token, away from Colab, in an empty folder."""
    names = (
        *hub.VARIABLES,
        "HF_HOME",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "OMP_NUM_THREADS",
        "TPU_ACCELERATOR_TYPE",
        "TPU_NAME",
    )
    for name in (
        *names,
        "COLAB_RELEASE_TAG",
        "COLAB_BACKEND_VERSION",
        "COLAB_JUPYTER_IP",
        "PJRT_DEVICE",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def named(checks: list[Check] | Iterator[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def save_token(home: Path, text: str, mode: int = 0o600) -> None:
    (home / "token").write_text(text)
    (home / "token").chmod(mode)


def config_of(base: str, trainer: str = "lora", **top: str) -> RunConfig:
    settings = "".join(f'{key} = "{value}"\n' for key, value in top.items())
    Path("config.toml").write_text(
        f'{settings}[data]\narchive = "sample"\n[roles.specialist]\nbase = "{base}"\ntrainer = {{name = "{trainer}"}}\n'
    )
    return load_config(Path("config.toml"))


def test_without_a_configuration_the_machine_is_checked_all_the_same() -> None:
    checks = doctor.examine(None, "", (), online=False)
    missing = named(checks, "configuration")
    assert (missing.verdict, "sysscan-models init" in missing.advice) == ("warn", True)
    names = {check.name for check in checks}
    assert {"python", "plugins", "llama.cpp", "gpu", "tpu", "processor", "threads", "memory", "disk", "token", "hub"} <= names
    assert "fail" not in {check.verdict for check in checks}
    assert named(checks, "python").verdict == "ok"
    assert "works" in named(checks, "llama.cpp").found


def test_with_a_configuration_the_price_of_its_run_is_part_of_it() -> None:
    checks = doctor.examine(None, "demo", (), online=False)
    assert "roles specialist, generalist" in named(checks, "configuration").found
    told = [check.found for check in checks if check.name == "plan: specialist"]
    assert any(text.startswith("memory (RAM): needs 2.4 GB held") for text in told)
    assert any("embedded:smollm2-135m-instruct comes with its package" in text for text in told)
    assert named(checks, "token").found.endswith("no model of this configuration needs one")


def test_faults_of_a_configuration_are_told_and_end_nothing() -> None:
    Path("sysscan-models.toml").write_text("[roles.specialist]\nbase = 3\n")
    checks = doctor.examine(None, "", (), online=False)
    fault = named(checks, "configuration")
    assert fault.verdict == "fail"
    assert "base" in fault.found
    assert named(checks, "memory").verdict == "ok"
    assert named(doctor.examine(Path("nowhere.toml"), "", (), online=False), "configuration").verdict == "fail"
    assert "unknown recipe" in named(doctor.examine(None, "nope", (), online=False), "configuration").found


def test_the_command_works_in_an_environment_with_the_core_only(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'huggingface_hub', 'gguf', 'llama_cpp'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from sysscan_models import doctor\n"
        "checks = doctor.examine(None, '', (), online=True)\n"
        "print([check.found for check in checks if check.name == 'hub'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not asked: the Python package huggingface_hub is not installed" in done.stdout


def test_extras_say_what_to_install() -> None:
    checks = {check.name: check for check in installation.extras(None)}
    assert {"extra train", "extra gguf", "extra langgraph", "extra tpu", "extra demo"} <= checks.keys()
    assert "extra all" not in checks
    assert checks["extra train"].found.count("torch ") == 1
    tpu = checks["extra tpu"]
    assert (tpu.verdict, tpu.advice) == ("ok", "To train on a TPU: pip install 'sysscan-models[tpu]'")
    needed = {check.name: check for check in installation.extras(config_of("org/model", device="tpu"))}
    assert (needed["extra tpu"].verdict, needed["extra tpu"].advice) == ("fail", "pip install 'sysscan-models[tpu]'")
    assert "torch-xla" in needed["extra tpu"].found or "torch_xla" in needed["extra tpu"].found
    assert installation.needed_extras(config_of("embedded:smollm2-135m-instruct")) == {"train", "gguf", "demo"}


def test_a_llama_cpp_that_does_not_load_in_time_is_a_failure() -> None:
    check = installation.llama_cpp(None, seconds=0.001)
    assert (check.verdict, "did not load within" in check.found) == ("fail", True)
    assert "--no-binary llama-cpp-python" in check.advice


@pytest.mark.parametrize(
    ("source", "says"),
    [("raise ImportError('no such library')", "cannot be imported: ImportError: no such library"),
     ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ends with SIGILL (built for another processor)")],
)  # fmt: skip
def test_a_llama_cpp_that_breaks_does_not_break_the_doctor(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = installation.llama_cpp(None)
    assert (check.verdict, says in check.found) == ("fail", True), check


@pytest.mark.parametrize(
    ("value", "verdict", "says"),
    [
        (TOKEN, "ok", "from HF_TOKEN: hf_..., 36 characters"),
        (TOKEN + "\n", "warn", "a line break around it"),
        (f'"{TOKEN}"', "warn", "quotation marks around it"),
        (TOKEN[:9] + " " + TOKEN[9:], "warn", "no token has"),
        ("your_hugging_face_token", "warn", "no hf_ prefix, 23 characters; it looks like the placeholder"),
        ("hf_short1", "warn", "its form is unusual"),
    ],
)
def test_a_token_is_described_and_never_shown(value: str, verdict: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    checks = list(hub.token(None))
    assert (checks[0].verdict, says in checks[0].found) == (verdict, True), checks[0]
    text = doctor.as_text([*checks, hub.not_asked()])
    assert value.strip('"\n ')[3:] not in text
    assert "bad" not in text
    assert "not asked" in text


def test_the_variables_and_the_login_file_are_read_in_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_token(home, OTHER + "\n")
    assert [token.origin for token in hub.tokens()] == [str(home / "token")]
    assert named(hub.token(None), "token").verdict == "ok"
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", TOKEN)
    assert hub.tokens()[0].origin == "HUGGINGFACE_HUB_TOKEN"
    assert [check.name for check in hub.token(None)] == ["token"]
    assert TOKEN not in repr(hub.tokens())
    monkeypatch.setenv("HF_TOKEN", OTHER)
    conflict = named(hub.token(None), "token variables")
    assert conflict.found == "HF_TOKEN and HUGGINGFACE_HUB_TOKEN hold different tokens; HF_TOKEN is used"
    assert conflict.advice.endswith("unset HUGGINGFACE_HUB_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert [check.name for check in hub.token(None)] == ["token"]
    monkeypatch.setenv("HF_TOKEN", "")
    empty = named(hub.token(None), "token variables")
    assert (empty.found, empty.advice) == ("HF_TOKEN is set but empty", "unset HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(home / "elsewhere"))
    assert hub.token_file() == home / "elsewhere"


def test_a_token_file_that_others_may_read(home: Path) -> None:
    save_token(home, TOKEN, 0o644)
    check = named(hub.token(None), "token file")
    assert (check.verdict, check.advice) == ("warn", f"chmod 600 {home / 'token'}")


def test_without_a_token_it_depends_on_the_models() -> None:
    gated = hub.token(load_config(recipe="gpu"))
    check = named(gated, "token")
    assert check.verdict == "warn"
    assert f"{GATED}, {OPEN} may need one" in check.found
    assert f"https://huggingface.co/{GATED}" in check.advice
    assert "https://huggingface.co/settings/tokens" in check.advice
    assert named(hub.token(None), "token").verdict == "ok"


def test_colab_is_told_about_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-1")
    advice = named(hub.token(None), "colab").advice
    assert "Add new secret" in advice
    assert "restart the runtime" in advice
    assert "userdata.get" in advice


def test_a_hub_that_is_switched_off_is_told_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert named(hub.token(load_config(recipe="gpu")), "hub").advice.startswith("unset HF_HUB_OFFLINE")
    assert [check.name for check in hub.token(load_config(recipe="demo"))] == ["token"]


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4, 15360, 15000'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_card_is_held_against_the_build_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config_of("org/model", device="cuda")
    assert hardware.accelerator(None).verdict == "ok"
    missing = hardware.accelerator(wanted)
    assert (missing.verdict, "asks for cuda" in missing.found) == ("fail", True)
    put_nvidia_smi(tmp_path, monkeypatch)
    there = hardware.accelerator(None)
    assert there.found.startswith("Tesla T4 (16.1 GB, 15.7 GB free)")
    assert (there.verdict, "torch" in there.found) == ("warn", True)
    assert hardware.accelerator(wanted).verdict == "fail"


def distribution(folder: Path, name: str, version: str) -> None:
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_tpu_needs_torch_xla_of_torchs_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config_of("org/model", device="tpu")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    monkeypatch.setattr(machine, "version", {"torch": "2.9.0"}.get)
    assert hardware.tpu(None).found == "TPU v5e-8 (8 devices of 17.2 GB); torch_xla is not installed"
    assert (hardware.tpu(None).verdict, hardware.tpu(wanted).verdict) == ("warn", "fail")
    monkeypatch.undo()
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    monkeypatch.syspath_prepend(tmp_path)
    fine = {"torch": "2.9.1+cpu", "torch_xla": "2.9.0", "libtpu": "0.0.21"}
    for changes, says in (
        ({"torch_xla": "2.8.0"}, "torch_xla 2.8.0 does not belong to torch 2.9.1+cpu"),
        ({"libtpu": ""}, "but not libtpu, which drives the chips"),
        ({"torch_tpu": "0.2.0"}, "torch_tpu is installed too"),
    ):
        install(tmp_path, {**fine, **changes})
        found = hardware.tpu(wanted)
        assert (found.verdict, says in found.found) == ("fail", True), found
        assert "pip install 'sysscan-models[tpu]'" in found.advice
    install(tmp_path, fine)
    assert hardware.tpu(wanted) == Check("tpu", "ok", "TPU v5e-8 (8 devices of 17.2 GB); torch_xla 2.9.0, torch 2.9.1+cpu")
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert hardware.tpu(wanted).advice == "export PJRT_DEVICE=TPU"
    monkeypatch.delenv("PJRT_DEVICE")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    several = hardware.tpu(wanted)
    assert (several.verdict, several.found.endswith("the slice has 4 machines")) == ("ok", True)
    assert "--worker=all" in several.advice


def install(folder: Path, versions: dict[str, str]) -> None:
    """Make distributions of these versions seem to be installed, and no others of those in the folder."""
    for old in folder.glob("*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    for name, version in versions.items():
        if version:
            distribution(folder, name, version)


def test_where_a_tpu_is_missing_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config_of("org/model", device="tpu")
    assert hardware.tpu(None) == Check("tpu", "ok", "none was found, and none is asked for")
    missing = hardware.tpu(wanted)
    assert (missing.verdict, missing.found.startswith("no TPU was found")) == ("fail", True)
    assert "Use a Cloud TPU VM, or Colab" in missing.advice
    assert "sysscan-models plan --on v5e-8" in missing.advice
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert hardware.tpu(wanted).advice.startswith(
        "Runtime > Change runtime type > TPU; some types need a paid plan (Colab Pro+)"
    )
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    monkeypatch.setenv("CPU_NUM_DEVICES", "4")
    virtual = hardware.tpu(wanted)
    assert (virtual.verdict, "4 virtual devices on the processor" in virtual.found) == ("warn", True)


def test_what_keeps_a_program_from_a_tpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config_of("org/model", device="tpu")
    install(tmp_path, {"torch": "2.9.0", "torch_xla": "2.9.0", "libtpu": "0.0.21"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "tpu_chips", lambda: 2)
    monkeypatch.setattr(machine, "tpu_nodes", lambda *root: [])
    monkeypatch.setattr(machine, "tpu_type", lambda: "unknown")
    hidden = hardware.tpu(wanted)
    assert hidden.found == "a TPU of unknown type, 2 chips in this machine; but neither /dev/accel* nor /dev/vfio/* is here"
    assert "--privileged" in hidden.advice
    closed = tmp_path / "not-there" / "accel0"
    monkeypatch.setattr(machine, "tpu_nodes", lambda *root: [closed])
    assert f"but {closed} cannot be opened by this user" in hardware.tpu(wanted).found
    closed.parent.mkdir()
    closed.touch()
    assert hardware.tpu(wanted).verdict == "ok"
    monkeypatch.setattr(machine, "tpu_users", lambda: {41: "python"})
    busy = hardware.tpu(wanted)
    assert (busy.verdict, busy.found.endswith("but it is in use by python (41)")) == ("fail", True)
    assert "restart its notebook's kernel" in busy.advice


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert hardware.threads().verdict == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    check = hardware.threads()
    assert (check.verdict, check.advice.startswith("export OMP_NUM_THREADS=")) == ("warn", True)


def test_a_folder_that_cannot_be_written_to_is_a_failure() -> None:
    assert hardware.disk(Path.cwd() / "models").verdict == "ok"
    if os.geteuid() == 0:
        assert hardware.disk(Path("/proc/self")).verdict == "fail"
    else:
        assert hardware.disk(Path("/")).verdict == "fail"


def test_the_text_is_wrapped_and_counted() -> None:
    checks = [
        Check("short", "ok", "fine"),
        Check("a longer name", "warn", "word " * 60, "do this\nthen that"),
        Check("bad", "fail", "broken"),
    ]
    text = doctor.as_text(checks, width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ok    short          fine"
    assert [line.strip() for line in lines if "->" in line] == ["-> do this", "-> then that"]
    assert lines[-1] == "1 ok, 1 warn, 1 fail"


@dataclass
class LocalHub:
    """A hub on the loopback interface: who may see what, and what it was asked."""

    users: dict[str, str] = field(default_factory=lambda: {TOKEN: "somebody"})
    access: dict[str, set[str]] = field(default_factory=lambda: {GATED: set(), OPEN: {"", TOKEN}})
    """Tokens that may fetch each model; the empty one stands for everybody."""
    status: int = 0
    """When set, every answer."""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, token: str) -> tuple[int, str, dict[str, object]]:
        """Return status, error code and body, as the hub answers."""
        if self.status:
            return self.status, "", {}
        if token and token not in self.users:
            return 401, "", {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, "", {"name": self.users[token], "auth": {"accessToken": {"role": "read"}}}
        model = path.removeprefix("/api/models/").removesuffix("/auth-check")
        if model not in self.access:
            return (404 if token else 401), "RepoNotFound", {}
        return (200, "", {}) if self.access[model] & {"", token} else ((403 if token else 401), "GatedRepo", {})


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    state = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            state.asked.append(self.path)
            status, code, body = state.answer(self.path, token)
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"X-Error-Code": code, "X-Error-Message": str(body.get("error", ""))}.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def ask(url: str, token: str = "", recipe: str = "gpu", **environment: str) -> dict[str, dict[str, str]]:
    """Ask in a process of its own, for huggingface_hub reads its settings once, when it is imported."""
    program = (
        "import json, sys\nfrom dataclasses import asdict\nfrom sysscan_models.config import load_config\n"
        "from sysscan_models.doctor import hub\n"
        "config = load_config(recipe=sys.argv[1]) if sys.argv[1] else None\n"
        "print(json.dumps({check.name: asdict(check) for check in hub.ask(config)}))\n"
    )
    settings = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    settings |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-c", program, recipe],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not token or token not in done.stdout + done.stderr
    checks: dict[str, dict[str, str]] = json.loads(done.stdout)
    return checks


def test_online_a_valid_token_without_access(local_hub: LocalHub) -> None:
    checks = ask(local_hub.url, TOKEN)
    assert checks["hub: token"]["found"] == "valid; it belongs to somebody, permission read"
    assert checks[f"hub: {OPEN}"] == {"name": f"hub: {OPEN}", "verdict": "ok", "found": "may be fetched", "advice": ""}
    gated = checks[f"hub: {GATED}"]
    assert gated["verdict"] == "fail"
    assert "gated, and the account of this token has no access (403)" in gated["found"]
    assert f"accept the terms at https://huggingface.co/{GATED} and wait" in gated["advice"]
    assert {"/api/whoami-v2", f"/api/models/{GATED}/auth-check"} <= set(local_hub.asked)
    local_hub.access[GATED].add(TOKEN)
    assert ask(local_hub.url, TOKEN)[f"hub: {GATED}"]["verdict"] == "ok"


def test_online_a_token_that_is_not_accepted(local_hub: LocalHub) -> None:
    checks = ask(local_hub.url, OTHER)
    told = checks["hub: token"]
    assert told["verdict"] == "fail"
    assert "does not accept the token from HF_TOKEN (401)" in told["found"]
    assert "regenerate it" in told["advice"]
    assert "Public models need no token, and a wrong one makes even them fail: unset HF_TOKEN" in told["advice"]
    assert "refused with the token from HF_TOKEN (401)" in checks[f"hub: {OPEN}"]["found"]


def test_online_without_a_token(local_hub: LocalHub) -> None:
    checks = ask(local_hub.url)
    assert "hub: token" not in checks
    assert checks[f"hub: {OPEN}"]["verdict"] == "ok"
    assert "it is gated, and no token is set (401)" in checks[f"hub: {GATED}"]["found"]
    del local_hub.access[GATED]
    assert "there is no such public model (401)" in ask(local_hub.url)[f"hub: {GATED}"]["found"]
    assert "there is no such model, or it is private (404)" in ask(local_hub.url, TOKEN)[f"hub: {GATED}"]["found"]


def test_online_without_a_configuration_the_original_models_are_asked_about(local_hub: LocalHub) -> None:
    checks = ask(local_hub.url, recipe="")
    assert {name: check["verdict"] for name, check in checks.items()} == {f"hub: {GATED}": "warn", f"hub: {OPEN}": "ok"}
    assert ask(local_hub.url, TOKEN, recipe="demo").keys() == {"hub: token"}


@pytest.mark.parametrize(("status", "says"), [(403, "forbids this token"), (503, "answered 503"), (429, "answered 429")])
def test_online_other_answers_say_nothing_about_the_token(local_hub: LocalHub, status: int, says: str) -> None:
    local_hub.status = status
    told = ask(local_hub.url, TOKEN, recipe="demo")["hub: token"]
    assert (told["verdict"], says in told["found"]) == ("warn", True), told


def test_a_hub_that_cannot_be_reached_says_nothing_about_the_token(local_hub: LocalHub) -> None:
    for checks, why in (
        (ask("http://127.0.0.1:9", TOKEN), "the hub could not be reached (ConnectError)"),
        (ask(local_hub.url, TOKEN, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE forbids the hub"),
    ):
        assert {check["verdict"] for check in checks.values()} == {"warn"}
        assert all(why in check["found"] for check in checks.values()), checks
    assert local_hub.asked == []


def test_the_command_asks_only_when_told_to(local_hub: LocalHub) -> None:
    words = [sys.executable, "-m", "sysscan_models", "doctor", "--recipe", "demo"]
    settings = {**os.environ, "HF_ENDPOINT": local_hub.url, "HF_TOKEN": OTHER, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    quiet = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    assert (quiet.returncode, local_hub.asked) == (0, [])
    assert "not asked" in quiet.stdout
    assert "does not accept" not in quiet.stdout
    forbidden = subprocess.run([*words, "--online", "--offline"], env=settings, capture_output=True, text=True, check=False)
    assert (forbidden.returncode, local_hub.asked) == (0, [])
    asked = subprocess.run([*words, "--online"], env=settings, capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert "does not accept the token from HF_TOKEN (401)" in asked.stdout
    assert OTHER not in quiet.stdout + asked.stdout + asked.stderr
