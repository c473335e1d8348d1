"""What a base model has that adapters can be put on, and whether it has what the options ask for.

Answers from names and shapes alone, before a model is loaded. Shapes: E experts, r rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sysscan_models.errors import UserError
from sysscan_plugins.lora import EXPERT_PARAMETERS, Lora
from sysscan_plugins.training.base_folder import BaseFolder
from sysscan_plugins.training.base_model import check_base, parameter_shapes

Shapes = Mapping[str, tuple[int, ...]]

_NOT_LINEAR = ("embed_tokens", "gate")
"""Last names of modules whose weight is a matrix and that are not linear modules: the embedding, a mixture's router."""


@dataclass(frozen=True)
class Targets:
    """What can be adapted, by its path in the model."""

    modules: Shapes
    """Linear modules: [out, in]."""
    experts: Shapes
    """Fused expert parameters: [E, out, in]."""

    @classmethod
    def of(cls, parameters: Shapes) -> Targets:
        """Choose them from the parameters of a model, by their names in memory."""
        matrices = {name.removesuffix(".weight"): shape for name, shape in parameters.items() if len(shape) == 2}
        return cls(
            modules={path: shape for path, shape in matrices.items() if path.rpartition(".")[2] not in _NOT_LINEAR},
            experts={name: shape for name, shape in parameters.items() if name.endswith(EXPERT_PARAMETERS)},
        )

    def adapters(self, options: Lora) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all lora_A and lora_B that the options ask for; raise UserError when a name finds nothing."""
        valid = ", ".join(sorted({path.rpartition(".")[2] for path in self.modules}))
        found: dict[str, tuple[int, ...]] = {}
        for target in options.targets:
            paths = [path for path in self.modules if f".{path}".endswith(f".{target}")]
            if not paths:
                advice = " Its MLP is made of experts: set experts = true to train them." if self.experts else ""
                raise UserError(f"this base model has no linear module named {target!r}.{advice} Valid names: {valid}")
            found.update({path: (1, *self.modules[path]) for path in paths})
        if options.experts and not self.experts:
            raise UserError(
                "experts = true, but this base model has no experts; set it to false and name MLP modules in extra_targets. "
                f"Valid names: {valid}"
            )
        if options.experts:
            found.update(self.experts)
        return {name: shape for path, target in found.items() for name, shape in _pair(path, target, options.rank)}


def _pair(path: str, target: tuple[int, ...], rank: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    count, out, into = target
    yield f"{path}.lora_A.weight", (count * rank, into)
    yield f"{path}.lora_B.weight", (out, count * rank)


def check_targets(base_dir: Path, options: Lora) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the adapters by name; raise UserError when this base cannot be trained or not be merged into."""
    check_base(base_dir, options, trains_embeddings=False)
    BaseFolder.open(base_dir)
    return Targets.of(parameter_shapes(base_dir)).adapters(options)


def by_group(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Count numbers by the group that their path belongs to: attention, mlp, experts, other."""
    groups: Counter[str] = Counter()
    for path, shape in shapes:
        groups[_group(path)] += math.prod(shape)
    return dict(sorted(groups.items()))


def _group(path: str) -> str:
    for part, group in {".experts": "experts", ".self_attn.": "attention", ".mlp.": "mlp"}.items():
        if part in path:
            return group
    return "other"
