"""Tokenizers and models that several tests begin with; made once, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_cases import byte_level_tokenizer, llama_tokenizer, sentencepiece_model, silence_llama_cpp, tiny_model


@pytest.fixture(autouse=True, scope="session")
def _quiet_llama_cpp() -> Iterator[None]:
    kept = silence_llama_cpp()
    yield
    del kept


@pytest.fixture(scope="session")
def llama3_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizers") / "llama3", "llama-bpe", bos=True)


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.model only."""
    return sentencepiece_model(tmp_path_factory.mktemp("tokenizers") / "sentencepiece")


@pytest.fixture(scope="session")
def llama2_tokenizer(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path) -> Path:
    return llama_tokenizer(sentencepiece_file, tmp_path_factory.mktemp("tokenizers") / "llama2")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, llama3_tokenizer: Path) -> Path:
    """A tiny Llama in 32 bits with a Llama 3 tokenizer and untied embeddings."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", llama3_tokenizer)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory, llama2_tokenizer: Path) -> Path:
    """A tiny Mixtral of 4 experts in bfloat16 with a SentencePiece tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-mixtral", llama2_tokenizer, "mixtral", dtype="bfloat16")
