"""A trainer that adds noise to a base model: of no use, and complete."""

from pathlib import Path
from shutil import copyfile

from sysscan_models import hookimpl
from sysscan_models.artifacts import Checkpoint
from sysscan_models.interfaces import Trainer, TrainJob


class NoiseTrainer(Trainer):
    """Adds noise to every weight."""

    name = "noise"
    scale: float = 0.01
    """Standard deviation of the noise."""

    def train(self, job: TrainJob) -> Checkpoint:
        import numpy as np
        from safetensors.numpy import load_file, save_file

        job.out_dir.mkdir(parents=True, exist_ok=True)
        for file in job.base.files:
            copyfile(job.base.root / file, job.out_dir / file)
        random = np.random.default_rng(job.seed)
        for file in Path(job.out_dir).glob("*.safetensors"):
            noisy = {name: (w + random.normal(0, self.scale, w.shape)).astype(w.dtype) for name, w in load_file(file).items()}
            save_file(noisy, file, metadata={"format": "pt"})
        return Checkpoint(kind="full", steps=1).at(job.out_dir)


@hookimpl
def sysscan_register_trainers():
    """Return the trainer."""
    return [NoiseTrainer]
