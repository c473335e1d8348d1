"""Trying out that llama.cpp reads text as the tokenizer does with which the model is trained.

A vocabulary that loads can still split text in another way, and nothing fails: the model only becomes worse. So texts that
are known to trip tokenizers are encoded by both sides before any weight is touched. Special tokens are never parsed here: a
document that contains their texts must remain text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf

from sysscan_models.errors import UserError
from sysscan_plugins.gguf_export import llamacpp
from sysscan_plugins.gguf_export.vocabulary import Vocabulary

PROBES = (
    "The auditd rule -w /etc/shadow -p wa -k identity is missing on host web-01.",
    "I've said: they'LL do it, it's OK; don't, WE'RE, you'D",
    "1 12 123 1234 12345 1234567890 3.14 -0 0x7fFF 1e-05 CVE-2024-3094",
    "  two  spaces\n\n\n   three \t tabs\t\t\r\n  end   ",
    "a  1\n 2   3\n\n  4",
    "def f(x):\n\tif x != None:\n        return x[1:-1]**2  # ok\n",
    "naïve café Straße ÆØÅ İstanbul пример ελληνικά עברית العربية हिन्दी ไทย",
    "日本語のテキスト。中文字符、测试 한국어 문장\uff01\uff0c",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 ✅ 🦙\u200d\u00a0\u3000\ufeff",
    "e\u0301 \u00e9 ﬁ ① ½ \uff12\uff10 ™",
    "\u2581 \u2581\u2581 ▁text",
    "https://user:x@example.org/a?b=c&d=%20#frag <a href='#'>\\\\server\\share</a>",
    '{"title": "SUID", "risk": [1, 2.5e3, null], "ok": true}',
    "[INST] <<SYS>> <0x0A> [PAD1] ### Instruction:",
    "x" * 40 + " " * 17 + "=" * 33 + "\n" * 9,
    "",
)
"""Texts of every kind that a scan report or a document has brought, and what has tripped converters before."""


def check_parity(vocabulary: Vocabulary, path: Path, texts: Sequence[str] = PROBES) -> str:
    """Tokenize texts with the folder's tokenizer and with llama.cpp; raise UserError when the ids differ.

    Returns a note for the report, empty when everything was compared. Where the folder has no tokenizer.json, or its library is
    not installed, there is nothing to compare with.
    """
    texts = (
        *texts,
        *(f"{before}{text}{after}" for text in vocabulary.control_texts[:64] for before, after in ((" ", " "), ("a", "."))),
    )
    if not (path / "tokenizer.json").is_file():
        return "token ids were not compared with the original tokenizer, for the model has no tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return "token ids were not compared with the original tokenizer, for the package tokenizers is not installed"
    if vocabulary.space_prefix in ("first", "always"):  # a second space before a text that begins with one: llama.cpp's habit
        texts = tuple(text for text in texts if not text.startswith((" ", "\u2581")))
    original = Tokenizer.from_file(str(path / "tokenizer.json"))
    original.encode_special_tokens = True
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vocabulary.gguf"
        write_vocabulary(vocabulary, file)
        ids = llamacpp.tokenize(file, texts)
    for text, found in zip(texts, ids, strict=True):
        expected = original.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise UserError(_difference(vocabulary, text, expected, found))
    return ""


def write_vocabulary(vocabulary: Vocabulary, file: Path) -> None:
    """Write a GGUF file of a vocabulary without a model; llama.cpp loads it with vocab_only."""
    writer = gguf.GGUFWriter(file, "llama")
    vocabulary.describe(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _difference(vocabulary: Vocabulary, text: str, expected: Sequence[int], found: Sequence[int]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
    shown = [[vocabulary.tokens[i].text for i in ids[first : first + 4]] for ids in (expected, found)]
    return (
        f"llama.cpp would read text differently from the model's tokenizer: {text!r} is {shown[0]} from token {first} on, and "
        f"{shown[1]} by the pre-tokenizer {vocabulary.pre!r}. This tokenizer cannot be exported"
    )
