"""A trainer that adds noise to a base model: of no use, and complete."""

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
        import torch
        from safetensors.torch import load_file, save_file

        job.out_dir.mkdir(parents=True, exist_ok=True)
        for file in job.base.files:
            copyfile(job.base.root / file, job.out_dir / file)
        random = torch.Generator().manual_seed(job.seed)
        for file in job.out_dir.glob("*.safetensors"):
            weights = load_file(file)
            noisy = {name: w + self.scale * torch.randn(w.shape, generator=random).to(w.dtype) for name, w in weights.items()}
            save_file(noisy, file, metadata={"format": "pt"})
        return Checkpoint(kind="full", steps=1).at(job.out_dir)


@hookimpl
def sysscan_register_trainers():
    """Return the trainer."""
    return [NoiseTrainer]
