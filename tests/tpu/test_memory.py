"""Memory of the compiled graphs, as XLA's buffer assignment says: bytes of one device, known without a TPU.

The CPU's scheduler for concurrency reorders what recomputing saves, so it is switched off; a TPU has none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from xla_cases import one_run


def dumping(folder: Path) -> dict[str, str]:
    return {
        "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_cpu_enable_concurrency_optimized_scheduler=false"
    }


def temporary_bytes(folder: Path) -> int:
    """Return the scratch memory of the largest graph that was dumped."""
    found = [
        sum(int(size) for size in re.findall(r"allocation \d+: size (\d+), preallocated-temp", path.read_text()))
        for path in folder.glob("*buffer-assignment.txt")
    ]
    assert found, f"nothing was dumped: {sorted(folder.iterdir())[:5]}"
    return max(found)


def test_checkpointing_lowers_the_memory_of_a_step(tmp_path: Path, record_property: Any) -> None:
    used = {}
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        one_run(
            folder,
            "deep",
            environment=dumping(folder / "dump"),
            gradient_checkpointing=checkpointing,
            max_seq_length=512,
            batch_size=4,
            micro_batch_size=4,
            max_steps=1,
        )
        used[checkpointing] = temporary_bytes(folder / "dump")
    record_property("bytes", used)
    assert used[True] < 0.6 * used[False]


ATTENTION = """
import sys, torch, torch_xla
from sysscan_plugins.training.devices.xla.attention import static_attention
import torch_xla.core.xla_model as xm
length, block = int(sys.argv[1]), int(sys.argv[2])
make = lambda heads: torch.ones(1, heads, length, 16, device="xla", requires_grad=True)
tensors = [make(4), make(2), make(2)]
segments = torch.ones(1, length, dtype=torch.int32, device="xla")
torch_xla.sync()
out = static_attention(*tensors, segments, scale=0.25, block=block, barrier=xm.optimization_barrier_)
out.sum().backward()
del out
torch_xla.sync(wait=True)
"""


LOSS = """
import sys, torch, torch_xla
from sysscan_plugins.training.devices.xla.loss import head_backward
length, chunk = int(sys.argv[1]), int(sys.argv[2])
head = torch.nn.Linear(32, 8192, bias=False).to("xla").requires_grad_(False)
hidden = torch.ones(2, length, 32, device="xla")
targets = torch.ones(2, length, dtype=torch.int32, device="xla")
torch_xla.sync()
loss, gradient = head_backward(head, hidden, targets, chunk, torch.ones((), device="xla") * 0.5)
torch_xla.sync(wait=True)
"""


def scratch(script: str, length: int, piece: int, folder: Path) -> int:
    environment = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1", **dumping(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(length), str(piece)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return temporary_bytes(folder)


def test_memory_of_attention_grows_with_the_length_not_its_square(tmp_path: Path, record_property: Any) -> None:
    """Forward and backward; the length doubles twice."""
    used = [scratch(ATTENTION, length, 128, tmp_path / str(length)) for length in (1024, 2048, 4096)]
    record_property("bytes", used)
    assert used[1] < 2.2 * used[0]
    assert used[2] < 2.2 * used[1]


def test_logits_of_a_few_chunks_exist_at_once(tmp_path: Path, record_property: Any) -> None:
    """With a frozen head, as adapters have it."""
    used = [scratch(LOSS, length, 128, tmp_path / str(length)) for length in (512, 2048)]
    record_property("bytes", used)
    chunk = 2 * 128 * 8192 * 4
    assert used[1] - used[0] < chunk, "logits of longer rows take more memory"
    assert used[1] < 5 * chunk


CHANCE = """
import sys, torch, torch_xla
from sysscan_plugins.training.devices import open_device
from sysscan_plugins.training.devices.xla.dropout import DividedDropout
from sysscan_plugins.training.devices.xla.layout import Layout
from sysscan_plugins.training.static_optimizers import StaticAdamW
open_device("tpu")
layout = Layout(4, 1)
made = layout.send(torch.ones(44, 20), ("fsdp", None))
if sys.argv[1] == "state":
    parameter = torch.nn.Parameter(made)
    optimizer = StaticAdamW([parameter], state_dtype=torch.bfloat16)
    optimizer.prime()
    for value in optimizer.state[parameter].values():
        layout.mark(value, ("fsdp", None)[: value.ndim])
    torch_xla.sync()
    parameter.grad = layout.send(torch.ones(44, 20), ("fsdp", None))
    optimizer.step()
else:
    dropped = layout.mark_rows(DividedDropout(0.3)(made))
torch_xla.sync(wait=True)
"""


@pytest.mark.parametrize("what", ["state", "dropout"])
def test_random_numbers_are_divided_like_what_they_are_for(what: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", **dumping(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CHANCE, what], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    graphs = [path.read_text() for path in tmp_path.glob("*cpu_after_optimizations.txt")]
    graph = max(graphs, key=len)
    assert not re.findall(r"\w+\[(?:44,20|880|440)\]", graph), "something is made whole"  # torch's come in halves
    assert re.search(r"s32\[11,20\]", graph), "the noise of a part is not there"
