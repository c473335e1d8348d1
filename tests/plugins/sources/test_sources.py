"""Base models: folders are never written to, the hub is asked for one commit, the embedded model is a real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sysscan_models.artifacts import BaseCheckpoint
from sysscan_models.errors import UserError
from sysscan_models.pipeline import choose_source
from sysscan_plugins.sources import Embedded, Folder, Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlanguage: en\nlicense: llama3\n---\n# A model\n"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    "tokenizer.json": b"{}",
    "README.md": CARD.encode(),
    "pytorch_model.bin": b"pickled",
    "original/consolidated.00.safetensors": b"the same weights again",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    for name, data in FILES.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


def test_a_folder_is_recorded_without_writing_into_it(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    base = Folder().fetch(str(folder), folder)
    assert sorted(folder.rglob("*")) == before
    assert base.licence == "llama3"
    assert set(base.files) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    base.check_files(contents=True)


def test_a_changed_folder_has_another_digest(folder: Path) -> None:
    before = Folder().fetch(str(folder), folder).digest
    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"] + b" ")
    assert Folder().fetch(str(folder), folder).digest != before


def test_hashes_of_large_files_are_remembered_until_the_file_changes(folder: Path) -> None:
    large = folder / "model.safetensors"
    large.write_bytes(b"\0" * (1 << 24))
    first = Folder().fetch(str(folder), folder).files["model.safetensors"]
    assert first.sha256 == hashlib.sha256(b"\0" * (1 << 24)).hexdigest()
    status = large.stat()
    with large.open("r+b") as stream:  # same size and time: the remembered hash is what we get
        stream.write(b"\1")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Folder().fetch(str(folder), folder).files["model.safetensors"] == first
    os.utime(large)
    assert Folder().fetch(str(folder), folder).files["model.safetensors"].sha256 != first.sha256


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", r"lacks \*.safetensors.*unpickling runs code"),
        ("tokenizer.json", "lacks tokenizer.json or tokenizer.model"),
    ],
)
def test_a_folder_that_is_no_base_model_is_refused(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=message):
        Folder().fetch(str(folder), folder)


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(UserError, match="a folder has no revisions"):
        Folder().fetch(str(folder), folder, revision="main")


def test_the_form_of_base_chooses_its_source(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert choose_source("org/name", tmp_path) == ("path", str(tmp_path / "org" / "name"))
    assert choose_source("org/other", tmp_path) == ("hub", "org/other")
    assert choose_source("embedded:x", tmp_path) == ("embedded", "x")
    for wrong in ("./nowhere", "/no/where/at/all", "one"):
        with pytest.raises(UserError, match="no such folder"):
            choose_source(wrong, tmp_path)


def test_offline_forbids_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="network is forbidden"):
        Hub().fetch("org/name", tmp_path / "out", offline=True)


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs, on loopback."""

    gated = False

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        status, headers, body = self.answer()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        path = self.path.partition("?")[0]
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}"
        if path.startswith("/api/models/org/name"):
            if path.endswith("/revision/nope"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            info = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree if "/tree/" in path else info).encode()
        prefix = f"/org/name/resolve/{COMMIT}/"
        if path.startswith(prefix) and (data := FILES.get(path.removeprefix(prefix))) is not None:
            return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@pytest.fixture
def hub() -> Iterator[tuple[str, type[FakeHub]]]:
    handler = type("Handler", (FakeHub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_from(endpoint: str, tmp_path: Path, base: str = "org/name", *options: str) -> subprocess.CompletedProcess[str]:
    """Run `fetch` as a user does, in a process of its own, for the hub's library reads its endpoint once."""
    command = [sys.executable, "-m", "sysscan_models", "fetch", "specialist", "--recipe", "demo"]
    settings = [f'models_dir="{tmp_path}/models"', f"roles.specialist.base={base}", *options]
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_" + "s3cret" * 5}
    environment |= {"no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [*command, *(word for setting in settings for word in ("--set", setting))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hub_model_is_resolved_to_a_commit_and_brings_no_pickles(hub: tuple[str, Any], tmp_path: Path) -> None:
    done = fetch_from(hub[0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert COMMIT in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    base = BaseCheckpoint.load(tmp_path / "models" / "bases" / "org--name")
    assert (base.reference, base.revision, base.licence) == ("org/name", COMMIT, "llama3")
    assert set(base.files) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert not (base.root / "pytorch_model.bin").exists()


def test_a_fetched_model_is_not_asked_for_again(hub: tuple[str, Any], tmp_path: Path) -> None:
    assert fetch_from(hub[0], tmp_path).returncode == 0
    hub[1].gated = True
    assert fetch_from(hub[0], tmp_path).returncode == 0


def test_a_gated_model_says_what_to_do_without_the_token(hub: tuple[str, Any], tmp_path: Path) -> None:
    hub[1].gated = True
    done = fetch_from(hub[0], tmp_path)
    assert done.returncode == 2
    assert "org/name is gated" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [("org/none", [], "was not found on the hub"), ("org/name", ["roles.specialist.revision=nope"], "has no revision 'nope'")],
)
def test_what_the_hub_does_not_have(hub: tuple[str, Any], tmp_path: Path, base: str, options: list[str], message: str) -> None:
    done = fetch_from(hub[0], tmp_path, base, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_hub_is_no_traceback(tmp_path: Path) -> None:
    done = fetch_from("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2
    assert "is this machine online?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ref", ["a/b/c", "foo bar/baz"])
def test_an_id_that_the_hub_cannot_have_is_no_traceback(tmp_path: Path, ref: str) -> None:
    with pytest.raises(UserError, match=rf"'{ref}' is no id of a model on the hub .ORGANISATION/NAME."):
        Hub().fetch(ref, tmp_path / "base")


def test_the_terms_of_a_base_belong_to_it(folder: Path) -> None:
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md"):
        (folder / name).write_text("terms")
    assert {"LICENSE", "NOTICE", "USE_POLICY.md"} <= Folder().fetch(str(folder), Path("unused")).files.keys()


def test_an_unknown_embedded_model_is_refused_with_the_valid_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown embedded model 'smollm'.*smollm2-135m-instruct"):
        Embedded().fetch("smollm", tmp_path / "out")
    with pytest.raises(UserError, match="revision '9' is asked for"):
        Embedded().fetch("smollm2-135m-instruct", tmp_path / "out", revision="9")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_embedded_model_is_a_complete_base_model(tmp_path: Path) -> None:
    base = Embedded().fetch("smollm2-135m-instruct", tmp_path / "out")
    assert base.licence == "apache-2.0"
    assert "4-bit" in base.notes[0]
    assert Folder().fetch(str(base.root), base.root).files == base.files
    config = json.loads((base.root / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert not list(tmp_path.glob(".*"))
