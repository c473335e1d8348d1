"""Tiny real models, a byte-level tokenizer and splits for the tests of training."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from sysscan_models.artifacts import BaseCheckpoint, Splits
from sysscan_models.encoding import CHATML
from sysscan_models.interfaces import TrainJob
from sysscan_models.roles import SPECIALIST

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token for every byte, and three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*CONTROL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL[1:])})
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Two layers, hidden size 32; the same weights each time."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **changes,
    }
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(num_local_experts=4, sliding_window=None, **shape)).to(dtype)
    return LlamaForCausalLM(LlamaConfig(**shape)).to(dtype)


class Streamed:
    """The parameters of a model one at a time, as a device's `place` takes them; `peak` and `whole` are bytes on the host.

    The bytes are those of numpy arrays that tensors share, so that no view of a tensor keeps them unseen.
    """

    def __init__(self, model: Any) -> None:
        self.parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.whole = sum(parameter.nbytes for parameter in self.parameters.values())
        self.largest = max(parameter.nbytes for parameter in self.parameters.values())
        self.held = self.peak = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.parameters.items():
            array = parameter.numpy().copy()
            weakref.finalize(array, self._let_go, array.nbytes)
            self.held += array.nbytes
            self.peak = max(self.peak, self.held)
            tensor = torch.from_numpy(array)
            del array
            yield name, tensor
            del tensor

    def _let_go(self, size: int) -> None:
        self.held -= size


def records(count: int = 24) -> list[dict[str, Any]]:
    """Conversations of different lengths."""
    return [
        {
            "id": f"doc-{number}",
            "kind": "answer",
            "messages": [
                {"role": "user", "content": f"finding {number} " + "x" * (number * 7 % 40)},
                {"role": "assistant", "content": f"answer {number} " + "y" * (number * 5 % 23)},
            ],
        }
        for number in range(count)
    ]


def make_splits(folder: Path, train: Sequence[dict[str, Any]], valid: Sequence[dict[str, Any]] = ()) -> Splits:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", train), ("valid", valid), ("test", ())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Splits(role="specialist").save(folder)


def make_base(folder: Path, kind: str = "llama", template: str | None = CHATML, **changes: Any) -> BaseCheckpoint:
    tiny_model(kind, torch.bfloat16, **changes).save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    return BaseCheckpoint(reference=f"tiny:{kind}").save(folder)


def make_job(tmp_path: Path, train: Sequence[dict[str, Any]] | None = None, out: str = "out", **options: Any) -> TrainJob:
    splits = make_splits(tmp_path / "splits", records() if train is None else train, records(6))
    base = BaseCheckpoint(reference="tiny").at(tmp_path)
    return TrainJob(SPECIALIST, base, splits, tmp_path / out, **options)
