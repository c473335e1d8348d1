"""How fast a model is exported to BF16, against `cp` of the file that comes out.

    python tests/benchmarks/export_vs_cp.py [--megabytes 500] [--rounds 3] [--dtype bfloat16] [--dir FOLDER]

Makes a random Llama of about that size with a small tokenizer, exports it and copies the result, in turn, and prints bytes per
second of the best round of each and their ratio. Both end with fsync. Needs a quiet machine and twice the model's size of
memory for the page cache; nothing is asserted here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HIDDEN, FEED_FORWARD = 1024, 4096


def make_model(folder: Path, megabytes: int, dtype: str) -> Path:
    """Write a random Llama of about that many megabytes in Hugging Face layout."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate([*alphabet, "th"])}, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind: torch.dtype = getattr(torch, dtype)
    layer_bytes = (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FEED_FORWARD) * kind.itemsize
    layers = max(1, round(megabytes * 1e6 / layer_bytes))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(alphabet) + 1,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (len(alphabet) + 1, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (FEED_FORWARD, HIDDEN) for part in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, FEED_FORWARD)
    torch.manual_seed(0)
    save_file({name: torch.randn(shape).to(kind) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes, what it wrote being on the disk at the end."""
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def copy(source: Path, target: Path) -> None:
    """Copy with cp, bytes and not references to them, and wait for the disk."""
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def main() -> None:
    """Make, export, copy, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--dir", type=Path, default=None)
    asked = parser.parse_args()
    from sysscan_plugins.gguf_export.conversion import export

    work = Path(tempfile.mkdtemp(prefix="export_vs_cp.", dir=asked.dir))
    try:
        folder, exported, copied = (
            make_model(work / "model", asked.megabytes, asked.dtype),
            work / "model.gguf",
            work / "copy.gguf",
        )
        times: dict[str, list[float]] = {"export": [], "cp": []}
        for _ in range(asked.rounds):
            exported.unlink(missing_ok=True)
            times["export"].append(seconds(lambda: export(folder, exported, type="BF16")))
            copied.unlink(missing_ok=True)
            times["cp"].append(seconds(lambda: copy(exported, copied)))
        size = exported.stat().st_size
    finally:
        shutil.rmtree(work)
    rates = {name: size / min(taken) for name, taken in times.items()}
    for name, rate in rates.items():
        print(f"{name:7} {size / 1e6:.0f} MB in {size / rate:.2f} s: {rate / 1e6:.0f} MB/s")
    print(f"export runs at {rates['export'] / rates['cp']:.2f} of cp's rate")


if __name__ == "__main__":
    main()
