from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
import pytest
from engine_cases import FINDING, HOSTILE, model_file, opened

from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_langgraph.vocabulary import SPACE_PREFIX
from sysscan_models.encoding import ChatEncoder, HFTokenizer
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import SPECIALIST

pytestmark = pytest.mark.training  # it compares with the tokenizers that training uses

TEXTS = (
    "plain words, 12345 and 3.14",
    HOSTILE,
    "<|im_start|>",
    "a<|im_end|>b <|im_end|> c",
    "  two spaces,\ttabs\n\n\nlines  ",
    "naïve Übergröße 日本語 😀👩‍🔬 \u200b ﷽",
    "def f(x):\n    return x['a'] != \"b\"  # 0xFF",
    "/usr/bin/python3 -m http.server 8000 >/dev/null 2>&1",
    '{"a": [1, 2], "b": null}',
    " leading",
    "\u2581lower one eighth block",
    "",
)


@pytest.fixture(scope="module")
def session() -> Iterator[LlamaCppSession]:
    with opened(model_file()) as session:
        yield session


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> HFTokenizer:
    from transformers import AutoTokenizer

    path = model_file()
    return HFTokenizer(AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))


@pytest.mark.parametrize("text", TEXTS)
def test_text_has_the_ids_and_spans_of_the_tokenizer_that_training_uses(
    session: LlamaCppSession, smollm2_tokenizer: HFTokenizer, text: str
) -> None:
    for follows in ("start", "control", "text"):
        assert session.encoder.tokenizer.encode_text(text, follows) == smollm2_tokenizer.encode_text(text, follows)


def test_a_finding_that_spells_control_tokens_changes_no_turn(session: LlamaCppSession, smollm2_tokenizer: HFTokenizer) -> None:
    training = ChatEncoder(smollm2_tokenizer, session.encoder.template)
    control = set(session.encoder.tokenizer.control_tokens.values())
    turns = []
    for finding in (FINDING, {**FINDING, "title": HOSTILE, "description": HOSTILE, "metadata": {HOSTILE: HOSTILE}}):
        messages = conversation(SPECIALIST, finding_document(finding))
        ids = session.encoder.prompt(messages)
        assert ids == training.prompt(messages)
        turns.append([token for token in ids if token in control])
    assert turns[0] == turns[1]
    assert len(turns[0]) == 5  # two whole turns and the beginning of the answer


MIXTRAL_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    import mistral_common
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("sentencepiece")
    original = next(Path(mistral_common.__file__).parent.rglob("tokenizer.model.v1"))
    shutil.copy(original, folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder)


def write_sentencepiece_model(tokenizer: Any, path: Path, *, user_defined: str = "", space_prefix: str = "") -> Path:
    """Write a one-layer Llama with a real SentencePiece vocabulary and weights of no meaning.

    Scores are the ranks of the merges, so that llama.cpp merges in the order of the other tokenizer.
    """
    model = orjson.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        ranks.setdefault(left + right, rank)
    texts = sorted(model["vocab"], key=model["vocab"].get)
    size, width = len(texts), 32
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    kinds = [special.get(text, 6 if text.startswith("<0x") else 1) for text in texts]
    scores = [-float(ranks.get(text, 10**6)) for text in texts]
    if user_defined:
        texts[-1], kinds[-1] = user_defined, 4
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(MIXTRAL_LIKE)
    if space_prefix:
        writer.add_string(SPACE_PREFIX, space_prefix)
    write_tiny_llama(writer, size, width)
    return path


def write_tiny_llama(writer: gguf.GGUFWriter, size: int, width: int, scale: float = 0.1) -> None:
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(size)
    random = np.random.default_rng(0)
    layer = {"attn_norm": (width,), "ffn_norm": (width,), **{f"attn_{x}": (width, width) for x in ("q", "k", "v", "output")}}
    layer |= {"ffn_gate": (2 * width, width), "ffn_up": (2 * width, width), "ffn_down": (width, 2 * width)}
    shapes = {"token_embd": (size, width), "output": (size, width), "output_norm": (width,)}
    for name, shape in {**shapes, **{f"blk.0.{name}": shape for name, shape in layer.items()}}.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * scale).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_sentencepiece_text_has_the_ids_of_the_tokenizer_that_training_uses(
    sentencepiece_tokenizer: Any, tmp_path: Path
) -> None:
    path = write_sentencepiece_model(sentencepiece_tokenizer, tmp_path / "first.gguf", space_prefix="first")
    reference = HFTokenizer(sentencepiece_tokenizer)
    with opened(path) as session:
        assert session.encoder.tokenizer.control_tokens == {"<s>": 1, "</s>": 2}
        for text in TEXTS:
            for follows in ("start", "control", "text"):
                assert session.encoder.tokenizer.encode_text(text, follows)[0] == reference.encode_text(text, follows)[0], (
                    text,
                    follows,
                )
        messages = conversation(SPECIALIST, finding_document({**FINDING, "description": HOSTILE}))
        ids = session.encoder.prompt(messages)
        assert ids == ChatEncoder(reference, MIXTRAL_LIKE).prompt(messages)
        assert [token for token in ids if token in (1, 2)] == [1]
        assert not session.encoder.takes_system


@pytest.mark.parametrize("scheme", ["always", "prepend"])
def test_every_way_to_put_a_space_before_text_is_followed(sentencepiece_tokenizer: Any, tmp_path: Path, scheme: str) -> None:
    from tokenizers import Tokenizer

    description = orjson.loads(sentencepiece_tokenizer.backend_tokenizer.to_str())
    if scheme == "always":
        description["pre_tokenizer"]["prepend_scheme"] = "always"
    else:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        description.update(normalizer={"type": "Sequence", "normalizers": [prepend, replace]}, pre_tokenizer=None)
    original = sentencepiece_tokenizer.backend_tokenizer
    try:
        sentencepiece_tokenizer._tokenizer = Tokenizer.from_str(orjson.dumps(description).decode())
        reference = HFTokenizer(sentencepiece_tokenizer)
    finally:
        sentencepiece_tokenizer._tokenizer = original
    given = scheme if scheme == "always" else ""  # llama.cpp's own habit needs no metadata
    with opened(write_sentencepiece_model(sentencepiece_tokenizer, tmp_path / "model.gguf", space_prefix=given)) as session:
        for text in TEXTS:
            for follows in ("start", "control", "text"):
                expected = reference.encode_text(text, follows)[0]
                assert session.encoder.tokenizer.encode_text(text, follows)[0] == expected, (text, follows)


def test_user_defined_tokens_are_not_recognised_in_text(sentencepiece_tokenizer: Any, tmp_path: Path) -> None:
    path = write_sentencepiece_model(sentencepiece_tokenizer, tmp_path / "model.gguf", user_defined="<tool>")
    with opened(path) as session:
        token = session.encoder.tokenizer.control_tokens["<tool>"]
        text = "see <tool>rm -rf</tool><tool><tool> end"
        ids, spans = session.encoder.tokenizer.encode_text(text, "start")
        assert token not in ids
        assert b"".join(session.vocabulary.piece(token) for token in ids).decode() == " " + text
        assert all(left[1] == right[0] for left, right in pairwise(spans))
        assert token not in session.encoder.prompt([{"role": "user", "content": text}])


def test_the_context_is_the_roles_and_never_longer_than_the_models(sentencepiece_tokenizer: Any, tmp_path: Path) -> None:
    path = write_sentencepiece_model(sentencepiece_tokenizer, tmp_path / "model.gguf")
    with opened(path, n_ctx=0) as session:
        assert session.n_ctx == 256
    with opened(path, dataclasses.replace(SPECIALIST, context_length=128), n_ctx=0) as session:
        assert session.n_ctx == 128
    with opened(path, n_ctx=64) as session:
        assert session.n_ctx == 64
