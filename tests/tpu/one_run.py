"""One training in a process of its own, for tests that need another number of devices or torch_xla's own switches.

    python one_run.py FOLDER KIND OPTIONS-AS-JSON

Goes on from FOLDER/tpu/checkpoints if there are any. Writes FOLDER/state.pt (masters and optimizer state as loaded, if there
was a checkpoint) and FOLDER/run.json (losses, compilations, executions).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "training"))

import orjson
import torch
import torch_xla.debug.metrics as metrics
from training_cases import make_job, records
from xla_cases import Options, model, train_on

from sysscan_plugins.training.devices import open_device


def main(folder: Path, kind: str, changes: dict[str, object]) -> None:
    options = Options(**changes)
    job = make_job(folder, train=records(60), out="tpu", device="tpu")
    loaded: dict[str, torch.Tensor] = {}
    with open_device("tpu") as device:
        load = device.load_state

        def load_and_look(optimizer: object, path: Path) -> None:
            load(optimizer, path)
            loaded.update({name: device.gathered(tensor).clone() for name, tensor in optimizer.tensors()})

        device.load_state = load_and_look
        trained = train_on(device, job, model(kind), options)
    torch.save(loaded, folder / "state.pt")
    executions = metrics.metric_data("ExecuteReplicatedTime") or metrics.metric_data("ExecuteTime")
    run = {
        "devices": device.count,
        "losses": trained.losses,
        "compiles": metrics.counter_value("UncachedCompile"),
        "executions": executions[0],
        "host reads": [name for name in metrics.counter_names() if name.startswith("aten::")],
        "monitor": trained.monitor,
    }
    (folder / "run.json").write_bytes(orjson.dumps(run))


if __name__ == "__main__":
    os.environ.setdefault("SYSSCAN_PROGRESS", "off")
    main(Path(sys.argv[1]), sys.argv[2], orjson.loads(sys.argv[3]))
