"""What each process of a test of training in several processes runs: a trainer's job, described in a JSON file."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sysscan_models.artifacts import BaseCheckpoint, Splits
from sysscan_models.errors import SysscanError
from sysscan_models.interfaces import TrainJob
from sysscan_models.roles import SPECIALIST
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.lora import Lora
from sysscan_plugins.training import devices
from sysscan_plugins.training.devices.fsdp import FullySharded


def main(described: dict[str, Any]) -> None:
    folder = Path(described["folder"])
    base, splits = BaseCheckpoint.load(folder / "base"), Splits.load(folder / "splits")
    job = TrainJob(SPECIALIST, base, splits, folder / described["out"], seed=7, device="cpu")
    trainer = {"full_finetune": FullFinetune, "lora": Lora}[described["trainer"]](**described["options"])
    if os.environ.get("RANK", "0") == described.get("process"):
        stop_at(described["stops_at"])
    if described.get("dump"):
        keep_what_is_loaded(folder / "loaded")
    trainer.train(job)


def stop_at(step: int) -> None:
    """Send this process SIGTERM while it works on a step."""
    begun = itertools.count(1)
    for kind in (devices.Device, FullySharded):

        def seeding(device: Any, number: int, seed: Any = kind.seed) -> None:
            seed(device, number)
            if next(begun) == step:
                os.kill(os.getpid(), signal.SIGTERM)

        kind.seed = seeding  # type: ignore[method-assign]


def keep_what_is_loaded(target: Path) -> None:
    """Write the masters and the optimizer's state again as soon as they are loaded."""
    for kind in (devices.Device, FullySharded):

        def loading(device: Any, optimizer: Any, source: Path, load_state: Any = kind.load_state) -> None:
            load_state(device, optimizer, source)
            target.mkdir(exist_ok=True)
            device.wait()
            device.save_state(optimizer, target)

        kind.load_state = loading  # type: ignore[method-assign]


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text()))
    except SysscanError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
