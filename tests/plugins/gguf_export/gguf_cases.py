"""Real tiny models and tokenizers in Hugging Face layout, and what Hugging Face and llama.cpp say of them.

Widths are multiples of 256, so that real K-quants occur; weights are random but seeded, and wide enough that logits differ
clearly.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysscan_plugins.gguf_export.vocabulary import _LLAMA3_SPLIT

CORPUS = [
    "The auditd rule that watches /etc/shadow is missing on host web-01, so a change of a password hash leaves no trace.",
    "def check(path):\n    if path.stat().st_mode & 0o4000:\n        return 'SUID'\n\treturn None  # nothing found\n",
    "Kernel parameter net.ipv4.ip_forward = 1; expected 0. Severity: medium, risk 45.5, control CM-7.",
    "I've said they'll find it's 2024's 12345 findings; DON'T WE'RE you'd 3.14159 0x7fff 192.168.0.17:8080",
    '{"id": "suid-0042", "title": "Unexpected SUID binary", "techniques": ["T1548.001"], "ok": true}\n\n\n',
    "naïve café Straße пример текста ελληνικά 日本語のテキスト 中文字符 한국어 😀 🦙 ✅  two   spaces    four",
]
SPECIAL = ("<|begin|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>")


def byte_level_tokenizer(folder: Path, kind: str, *, size: int = 500, bos: bool = False, extra: Sequence[Any] = ()) -> Path:
    """Write a small byte-level BPE tokenizer that splits text as llama.cpp's `kind` does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = {
        "gpt-2": lambda: gpt2,
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "llama-bpe": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        "smaug-bpe": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
    }[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    if extra:
        tokenizer.add_tokens(list(extra))
    if bos:
        first = tokenizer.token_to_id(SPECIAL[0])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], first)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def sentencepiece_model(folder: Path, *, size: int = 500, **options: Any) -> Path:
    """Write a small tokenizer.model with byte fallback, as Llama 2's."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "corpus.txt"
    text.write_text("\n".join(line for lines in CORPUS for line in lines.splitlines()) + "\n")
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=size, **{**settings, **options}
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder


def llama_tokenizer(model_folder: Path, folder: Path) -> Path:
    """Write the tokenizer.json that transformers makes of a tokenizer.model."""
    from transformers import LlamaTokenizer

    LlamaTokenizer.from_pretrained(str(model_folder)).save_pretrained(str(folder))
    return folder


def tiny_model(
    folder: Path, tokenizer: Path, kind: str = "llama", *, seed: int = 0, dtype: str = "float32", **config: Any
) -> Path:
    """Write a random Llama, Mistral or Mixtral of width 256 with a tokenizer's files beside it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + len(SPECIAL),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,
        "tie_word_embeddings": False,
    }
    if kind == "mixtral":
        settings |= {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 256}
    name = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral"}[kind]
    made = getattr(transformers, f"{name}Config")(**{**settings, **config})
    model = getattr(transformers, f"{name}ForCausalLM")(made)
    with torch.no_grad():  # norms and biases begin as ones and zeros, which would hide that they were mixed up
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def hf_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """Return the logits at every position, [T, V], of the model in 32 bits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def hf_greedy(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    """Return the `count` likeliest continuation tokens, one after the other."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


class LlamaCpp:
    """A GGUF file opened by the real llama.cpp through its C interface."""

    def __init__(self, file: Path, *, vocab_only: bool = False) -> None:
        import llama_cpp

        self.api = llama_cpp
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = vocab_only
        parameters.use_extra_bufts = False  # repacked weights, whose AMX kernels crash on some virtual machines
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        assert self.model, f"llama.cpp does not load {file}"
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return the logits at every position, [T, V]."""
        api = self.api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(64, len(ids))
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = api.llama_init_from_model(self.model, parameters)
        batch = api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for position, token in enumerate(ids):
                batch.token[position], batch.pos[position], batch.logits[position] = token, position, True
                batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            assert api.llama_decode(context, batch) == 0
            flat = np.ctypeslib.as_array(api.llama_get_logits(context), shape=(len(ids), self.size))
            return flat.copy()
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """Return the `count` likeliest continuation tokens, one after the other."""
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return a text's ids; `special` adds BOS and parses control tokens."""
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), special, special)
        return list(ids[:count])

    def close(self) -> None:
        self.api.llama_model_free(self.model)


@contextlib.contextmanager
def opened(file: Path, *, vocab_only: bool = False) -> Iterator[LlamaCpp]:
    """Open a GGUF file with llama.cpp for a while."""
    model = LlamaCpp(file, vocab_only=vocab_only)
    try:
        yield model
    finally:
        model.close()


def silence_llama_cpp() -> Any:
    """Keep llama.cpp from writing its log into the tests' output; the returned callback must be kept."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    return quiet


def package_file(package: str, *path: str) -> Path | None:
    """Return a file that an installed package ships, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *path)
