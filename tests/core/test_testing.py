"""The stubs do what they promise: files that the real libraries read, answers that stream, no pytest unasked."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import orjson
import pytest

from sysscan_models.artifacts import BaseCheckpoint, MergedCheckpoint, Splits, file_records
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.interfaces import GenerationRequest, ModelRef, TrainJob
from sysscan_models.packaging import load_package, verify
from sysscan_models.plugins import Registry
from sysscan_models.roles import GENERALIST, SPECIALIST
from sysscan_models.testing import (
    StubAdapterTrainer,
    StubBackend,
    StubEvaluator,
    StubQuantizer,
    StubSession,
    StubSource,
    StubTrainer,
    sample_documents,
    tiny_llama,
    write_archive,
)
from sysscan_models.testing.fixtures import ConfigFactory

pytest_plugins = ["sysscan_models.testing"]

TEXT = "In 2024 root ran /tmp/x 12 times; naïve, über, <|im_end|>\n\tdef f(): return 'the error on the host'"


@pytest.fixture
def base(tmp_path: Path) -> BaseCheckpoint:
    return StubSource().fetch("tiny", tmp_path / "base")


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    root = tmp_path / "data"
    root.mkdir()
    turns = [{"role": "user", "content": "four"}, {"role": "assistant", "content": "seventeen, éé"}]
    (root / "train.jsonl").write_bytes(orjson.dumps({"messages": turns}) + b"\n" + orjson.dumps({"text": "text"}) + b"\n")
    (root / "test.jsonl").write_bytes(b'{"text": "x"}\n{"text": "y"}\n')
    return Splits(role="specialist", files=file_records(root, ["train.jsonl"])).at(root)


@pytest.fixture
def gguf(base: BaseCheckpoint, tmp_path: Path) -> ModelRef:
    model = StubQuantizer().quantize(MergedCheckpoint().at(base.root), tmp_path / "m.gguf", SPECIALIST)
    return ModelRef(model.path, SPECIALIST)


def test_importing_the_stubs_imports_neither_pytest_nor_a_numeric_library() -> None:
    program = (
        "import sys, sysscan_models.testing; print([m for m in ('pytest', 'numpy', 'gguf', 'safetensors') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_conftest_may_import_the_stubs_and_load_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        'from sysscan_models.testing import stub_plugin\npytest_plugins = ["sysscan_models.testing"]\n'
    )
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(sysscan_stub_registry, sysscan_archive, sysscan_stub_config):\n"
        "    assert sysscan_stub_registry.get('trainers', 'stub')().steps == 2\n"
        "    assert sysscan_stub_config('seed=5').seed == 5\n"
        "    assert sysscan_archive.exists()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "1 passed" in done.stdout, done.stdout


def test_the_stubs_are_registered_by_name(sysscan_stub_registry: Registry) -> None:
    for kind in ("sources", "trainers", "quantizers", "evaluators", "backends"):
        assert "stub" in sysscan_stub_registry.names(kind)
    assert sysscan_stub_registry.owners["trainers", "stub"] == "sysscan_models.testing"


def test_the_base_model_depends_on_its_name_alone(tmp_path: Path) -> None:
    digests = [StubSource().fetch(name, tmp_path / folder).digest for name, folder in (("a", "1"), ("a", "2"), ("b", "3"))]
    assert digests[0] == digests[1] != digests[2]


def test_transformers_and_llama_cpp_read_the_same_model(base: BaseCheckpoint, gguf: ModelRef) -> None:
    """Both libraries must find the same tokens and, to single precision, the same logits: then checkpoint and GGUF are real."""
    import llama_cpp
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.root)
    model = AutoModelForCausalLM.from_pretrained(base.root)
    served = llama_cpp.Llama(str(gguf.base_gguf), n_ctx=256, logits_all=True, verbose=False)
    ids = tokenizer(TEXT)["input_ids"]
    assert served.tokenize(TEXT.encode(), add_bos=False, special=True) == ids
    assert tokenizer.decode(ids) == TEXT
    served.eval(ids)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    assert abs(served.scores[: len(ids)] - logits).max() < 1e-3 * abs(logits).max()
    turns = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    answer = served.create_chat_completion(turns, max_tokens=3)
    assert answer["usage"]["completion_tokens"] <= 3
    served.close()


def test_half_precision_shows_in_type_and_size(base: BaseCheckpoint, tmp_path: Path) -> None:
    full, half = (
        StubQuantizer(type=kind).quantize(MergedCheckpoint().at(base.root), tmp_path / f"{kind}.gguf")
        for kind in ("F32", "F16")
    )
    assert full.weights_by_type == {"F32": full.parameters}
    assert half.weights_by_type["F16"] > 0.9 * half.parameters
    assert half.path.stat().st_size < full.path.stat().st_size
    assert sum(half.weights_by_type.values()) == half.parameters == full.parameters


def test_the_quantizer_refuses_other_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4096}')
    with pytest.raises(UserError, match=r"takes only the tiny models of sysscan_models\.testing; llama is another"):
        StubQuantizer().check(BaseCheckpoint(reference="llama").at(tmp_path))


@pytest.mark.parametrize("trainer", [StubTrainer, StubAdapterTrainer])
def test_training_depends_on_data_seed_and_options(
    trainer: type[StubTrainer], base: BaseCheckpoint, splits: Splits, tmp_path: Path
) -> None:
    def digest(folder: str, seed: int = 1, **options: float) -> str:
        made = trainer(**options).train(TrainJob(SPECIALIST, base, splits, tmp_path / folder, seed=seed))
        made.check_files(contents=True)
        return str(made.files)

    first = digest("a")
    assert digest("b") == first
    assert len({first, digest("c", seed=2), digest("d", steps=3), digest("e", learning_rate=0.5)}) == 4
    splits.train.write_bytes(b'{"text": "other"}\n')
    assert digest("f") != first


def test_tokens_are_counted_and_an_empty_split_is_refused(base: BaseCheckpoint, splits: Splits, tmp_path: Path) -> None:
    job = TrainJob(SPECIALIST, base, splits, tmp_path / "out")
    made = StubTrainer().train(job)
    assert (made.train_tokens, made.supervised_tokens) == (4 + 15 + 4, 15 + 4)
    splits.train.write_bytes(b"")
    with pytest.raises(DataError, match="holds no example"):
        StubTrainer().train(job)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
def test_the_adapter_is_one_that_peft_loads_and_its_merge_is_pefts(
    base: BaseCheckpoint, splits: Splits, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = StubAdapterTrainer(learning_rate=0.1)
    adapter = trainer.train(TrainJob(SPECIALIST, base, splits, tmp_path / "adapter"))
    merged = trainer.merge(adapter, base, tmp_path / "merged")
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.root), adapter.root)
    expected = wrapped.merge_and_unload().state_dict()
    ours = tiny_llama.read_tensors(merged.root / "model.safetensors")
    for name, tensor in ours.items():
        assert torch.allclose(expected[name], torch.from_numpy(tensor), atol=1e-6), name
    before = tiny_llama.read_tensors(base.root / "model.safetensors")
    assert [name for name in ours if (ours[name] != before[name]).any()] == ["model.layers.0.self_attn.q_proj.weight"]


def test_the_evaluator_counts_and_its_gate_obeys(gguf: ModelRef, splits: Splits, tmp_path: Path) -> None:
    made = StubEvaluator(passes=False).evaluate({"tuned-q4": gguf}, splits, tmp_path / "eval")
    assert made.figures == {"test_examples": 2, "tuned-q4_bytes": gguf.base_gguf.stat().st_size}
    assert made.gates == {"stub": False}
    assert orjson.loads((tmp_path / "eval" / "figures.json").read_bytes()) == made.figures


def ask(session: StubSession, *requests: GenerationRequest) -> dict[str, list[tuple[str, str]]]:
    said: dict[str, list[tuple[str, str]]] = {request.id: [] for request in requests}
    for event in session.generate(requests):
        said[event.id].append((event.text, event.finish_reason))
    return said


def request(name: str, question: str = "SUID binary in /tmp\n\npath: /tmp/x", **options: object) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": question},), **options)  # type: ignore[arg-type]


def test_a_session_answers_with_the_roles_response_model(gguf: ModelRef) -> None:
    with StubBackend().open(gguf) as session:
        (pieces,) = ask(session, request("1")).values()
    answer = SPECIALIST.response_model.model_validate_json("".join(text for text, _ in pieces))
    assert answer.model_dump(exclude_none=True) == {"analysis": "specialist stub: SUID binary in /tmp"}
    assert len(pieces) > 3
    assert [reason for _, reason in pieces] == [""] * (len(pieces) - 1) + ["stop"]
    general = StubBackend().open(ModelRef(gguf.base_gguf, GENERALIST))
    assert "executive_summary" in general.answer(request("2"))


def test_requests_stream_in_turn_and_can_be_limited_and_stopped(gguf: ModelRef) -> None:
    session = StubBackend().open(gguf)
    order = [event.id for event in session.generate([request("a"), request("b")])]
    assert order[:4] == ["a", "b", "a", "b"]
    said = ask(session, request("short", max_tokens=2), request("stop", stop=(" stub",)), request("none", stop=("{",)))
    assert [reason for _, reason in said["short"]] == ["", "length"]
    assert "".join(text for text, _ in said["stop"]) == '{"analysis":"specialist'
    assert said["none"] == [("", "stop")]
    assert session.cancelled == []


def test_closing_the_iterator_cancels_what_is_left(gguf: ModelRef) -> None:
    session = StubBackend().open(gguf)
    events = session.generate([request("a", max_tokens=1), request("b"), request("c")])
    first = [next(events), next(events)]
    assert [event.finish_reason for event in first] == ["length", ""]
    events.close()  # type: ignore[attr-defined]
    assert sorted(session.cancelled) == ["b", "c"]


def test_a_closed_session_and_a_file_that_is_no_model_are_refused(gguf: ModelRef, tmp_path: Path) -> None:
    session = StubBackend().open(gguf)
    session.close()
    with pytest.raises(SysscanError, match="this session is closed"):
        next(session.generate([request("a")]))
    (tmp_path / "x.gguf").write_text("text")
    with pytest.raises(UserError, match=r"x\.gguf is not a GGUF file"):
        StubBackend().open(ModelRef(tmp_path / "x.gguf", SPECIALIST))


def test_archives_hold_a_json_file_per_document_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    documents = sample_documents(20)
    first = write_archive(tmp_path / "a.tar.gz", documents)
    assert write_archive(tmp_path / "b.tar.gz", documents).read_bytes() == first.read_bytes()
    with tarfile.open(first) as tar:
        members = tar.getmembers()
        assert len(members) == 20
        stream = tar.extractfile(members[3])
        assert stream is not None
        assert orjson.loads(stream.read()) == documents[3]
    with pytest.raises(ValueError, match="100000 were asked for"):
        sample_documents(100_000)


def test_the_fixtures_make_a_configuration_and_a_finished_package(
    sysscan_stub_config: ConfigFactory, sysscan_stub_package: Path
) -> None:
    config = sysscan_stub_config("roles.specialist.trainer.steps=7")
    assert isinstance(config.roles["specialist"].trainer, StubTrainer)
    assert config.roles["specialist"].trainer.steps == 7
    assert verify(sysscan_stub_package).ok
    assert load_package(sysscan_stub_package).models.keys() == {"specialist", "generalist"}
