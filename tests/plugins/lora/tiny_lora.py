"""Real tiny models and adapters: two layers, grouped queries, four experts; random weights, so that no two agree by chance."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>[assistant] {% endif %}"
)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_base(
    folder: Path, kind: str = "llama", *, dtype: str = "float32", seed: int = 1, shards: bool = False, **options: Any
) -> Path:
    """Save a tiny `llama` or `mixtral`; options are those of its configuration, `fused` keeps the experts fused on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    fused = options.pop("fused", False)
    sizes = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **options,
    }
    torch.manual_seed(seed)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = MixtralForCausalLM(MixtralConfig(**{"num_local_experts": 4, "num_experts_per_tok": 2, **sizes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(
        folder, max_shard_size="20KB" if shards else "1GB", **({"save_original_format": False} if fused else {})
    )
    save_tokenizer(folder)
    return folder


def save_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """Save a random adapter of the given LoraConfig in peft's layout."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    options: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "init_lora_weights": False,
        **config,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        warnings.simplefilter("ignore", RuntimeWarning)  # peft says that patterns for parameters are ignored; they are not
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(**options))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def tensors_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of every tensor of a model folder, by name."""
    from sysscan_plugins.training.tensor_file import TensorFile

    found = {}
    for path in folder.glob("model*.safetensors"):
        data = path.read_bytes()
        for tensor in TensorFile.open(path).tensors:
            found[tensor.name] = (tensor.dtype, tensor.shape, data[tensor.start : tensor.end])
    return found
