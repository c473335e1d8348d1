"""Training on TPUs with torch_xla: one program over all devices (SPMD), static shapes, one compiled graph per optimizer step.

Everything of a step (its micro-batches, clipping, the update) is traced first and runs at its end, without a host read between.
What was shown on virtual CPU devices only, and what could not be run at all (Pallas kernels, several hosts), is said where it
is. The successor of torch_xla (TorchTPU) would be a device of its own, in another environment, behind the same interface.

Shapes: B rows of all devices, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sysscan_models.errors import SysscanError, UserError
from sysscan_plugins.training import TrainingOptions, checkpoints
from sysscan_plugins.training.batches import Batch
from sysscan_plugins.training.devices import PATIENCE, Device, Weights
from sysscan_plugins.training.devices.eager import causal_model
from sysscan_plugins.training.devices.xla import runtime
from sysscan_plugins.training.loss import LOGITS
from sysscan_plugins.training.optimizers import MasterOptimizer

if TYPE_CHECKING:
    from sysscan_plugins.training.devices.xla.experts import CapacityExperts
    from sysscan_plugins.training.devices.xla.optimizer import XLAOptimizer


class XLA(Device):
    """All TPU devices of this slice, or virtual devices on the CPU to try the same code (PJRT_DEVICE=CPU CPU_NUM_DEVICES=4)."""

    streams = True
    fixed_steps = True

    def __init__(self) -> None:
        self._runtime = runtime.start()
        self.name, self.count = self._runtime.name, self._runtime.devices
        self.process, self.processes = self._runtime.process, self._runtime.processes
        self.peak_flops = self._runtime.peak_flops
        if self.processes > 1:  # untested: needs a slice of several hosts
            torch.distributed.init_process_group("gloo", init_method="xla://", timeout=PATIENCE)
        self._shapes: list[str] = []
        self._hooks: list[Any] = []
        self._model: Any = None
        self._optimizer: XLAOptimizer | None = None
        self._experts: CapacityExperts | None = None
        self._checked = False

    def close(self) -> None:
        """See Device; the model's weights on the devices live no longer than the model."""
        from sysscan_plugins.training.devices.xla.dropout import restore_dropout
        from sysscan_plugins.training.devices.xla.experts import forget_experts

        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._experts is not None:
            forget_experts()
        if self._model is not None:
            restore_dropout(self._model)
        self._model = self._optimizer = self._experts = None
        if self.processes > 1:
            torch.distributed.destroy_process_group()

    def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
        """See Device."""
        import torch_xla

        from sysscan_plugins.training.devices.xla.compiles import CompileGuard
        from sysscan_plugins.training.devices.xla.dropout import divide_dropout
        from sysscan_plugins.training.devices.xla.layout import Layout

        if options.tensor_parallel > 1 and self.processes > 1:
            raise UserError(
                f"tensor_parallel is {options.tensor_parallel}, and this slice has {self.processes} hosts; on several hosts "
                f"only rows are divided. Set tensor_parallel = 1, or use a slice of one host"
            )
        causal = causal_model(model)
        self._layout = Layout(self.count, options.tensor_parallel, processes=self.processes)
        self._model, self._optimizer, self._checked = model, None, False
        self._use_attention(causal, options)
        given = weights if weights is not None else [(name, p.detach()) for name, p in model.named_parameters()]
        _fill(model, given, self._layout)
        self._use_experts(causal, options)
        divide_dropout(model)
        self._divide_activations(causal)
        if options.gradient_checkpointing:
            _checkpoint(causal)
        torch_xla.sync()
        self._layout.check(self._parameters(), "after loading")
        self._guard = CompileGuard()

    def _use_attention(self, causal: Any, options: TrainingOptions) -> None:
        import torch_xla.core.xla_model as xm

        from sysscan_plugins.training.devices.xla.attention import use_static_attention

        flash = options.attention == "flash"
        if flash and not self._runtime.is_tpu:
            raise UserError(
                f'attention = "flash" runs on a real TPU only, and this is {self.name}; set attention = "blockwise"'
            )
        if flash and getattr(causal.config, "sliding_window", None):
            raise UserError('attention = "flash" has no sliding window, which this model needs; set attention = "blockwise"')
        if getattr(causal.config, "attention_dropout", 0.0):
            raise UserError(
                f"the model's config.json has attention_dropout {causal.config.attention_dropout:g}, which a TPU does not "
                f"support; set it to 0 there"
            )
        use_static_attention(causal, flash=flash, mesh=self._layout.mesh, barrier=xm.optimization_barrier_)

    def _use_experts(self, causal: Any, options: TrainingOptions) -> None:
        from sysscan_plugins.training.devices.xla.experts import CapacityExperts, looped_experts, use_static_experts

        self._experts = None
        if not getattr(causal.config, "num_local_experts", 0):
            return
        if options.expert_capacity:
            dropped = self._layout.send(torch.zeros(()), ())
            self._experts = CapacityExperts(
                options.expert_capacity, dropped, self._layout.mark_experts, recomputed=options.gradient_checkpointing
            )
        use_static_experts(causal, self._experts or looped_experts)

    def _divide_activations(self, causal: Any) -> None:
        """Keep every device at its own rows: left alone, XLA may gather activations to save a gathering of weights."""
        layout = self._layout
        for module in (causal.model.embed_tokens, *causal.model.layers, causal.get_output_embeddings()):
            self._hooks.append(module.register_forward_hook(lambda _, __, output: layout.mark_rows(output)))

    def create_optimizer(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions) -> MasterOptimizer:
        """See Device."""
        from sysscan_plugins.training.devices.xla.optimizer import XLAOptimizer

        self._optimizer = XLAOptimizer(parameters, options, self._layout)
        self._layout.check(self._optimizer.laid_out(), "before the first step")
        self._guard.skip()
        return self._optimizer

    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        """See Device."""
        from sysscan_plugins.training.devices.xla.loss import head_backward

        head, hidden_BTH, targets_BT, chunk = self._hidden(model, batch)
        loss, gradient = head_backward(head, hidden_BTH, targets_BT, chunk, self._layout.send_number(scale))
        hidden_BTH.backward(gradient)  # type: ignore[no-untyped-call]
        self._shapes.append("x".join(str(size) for size in batch.ids_BT.shape))
        return loss

    def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
        """See Device; runs at once."""
        import torch_xla

        from sysscan_plugins.training.devices.xla.loss import head_loss

        with torch.no_grad():
            loss = head_loss(*self._hidden(model, batch))
        torch_xla.sync()
        self._guard.check("validation", "x".join(str(size) for size in batch.ids_BT.shape))
        return loss

    def _hidden(self, model: Any, batch: Batch) -> tuple[Any, torch.Tensor, torch.Tensor, int]:
        """Return the output head, the hidden states [B, T, H], the targets [B, T], positions whose logits exist at once."""
        causal = causal_model(model)
        if self.processes > 1:
            batch = batch.part(self.process, self.processes)
        ids_BT, positions_BT, segments_BT, targets_BT = self._layout.send_rows(
            (batch.ids_BT, batch.positions_BT, batch.segments_BT, batch.targets_BT)
        )
        if self._experts is not None:
            self._experts.real_BT = segments_BT > 0
        hidden_BTH = causal.model(
            input_ids=ids_BT, position_ids=positions_BT, attention_mask=None, use_cache=False, segments_BT=segments_BT
        ).last_hidden_state
        rows = -(-len(ids_BT) // self._layout.axes["fsdp"])
        chunk = max(128, LOGITS // (int(causal.config.vocab_size) * rows) // 128 * 128)
        return causal.get_output_embeddings(), hidden_BTH, targets_BT, chunk

    def seed(self, seed: int) -> None:
        """See Device."""
        import torch_xla.core.xla_model as xm

        torch.manual_seed(seed)
        xm.set_rng_state(seed % 2**31)

    def end_step(self) -> None:
        """See Device; compiles in the first step, and checks then where everything lies."""
        import torch_xla

        torch_xla.sync()
        shapes, self._shapes = self._shapes, []
        self._guard.check("training", f"{len(shapes)} micro-batches of {' and '.join(sorted(set(shapes)))}")
        if not self._checked:
            self._layout.check(self._parameters(), "after the first step")
            if self._optimizer is not None:
                self._layout.check(self._optimizer.laid_out(), "after the first step")
            self._checked = True

    def read(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        """See Device; compiles nothing."""
        import torch_xla
        import torch_xla.core.xla_model as xm

        if not tensors:
            return []
        xm.wait_device_ops()
        # The copy of one device: asking for the whole could make XLA gather it first.
        copies = torch_xla._XLAC._get_local_shards([tensor.detach() for tensor in tensors])
        return [float(copy) for (copy, _), *_ in copies]

    def monitor(self) -> dict[str, float]:
        """See Device: `compiles`; `memory_gb` in use where the runtime tells; `dropped_tokens` of experts with a capacity."""
        import torch_xla
        import torch_xla.core.xla_model as xm

        figures: dict[str, float] = {"compiles": self._guard.compiles}
        if self._experts is not None:
            [figures["dropped_tokens"]] = self.read([self._experts.dropped])
        if self._runtime.is_tpu:
            with suppress(RuntimeError):  # torch_xla 2.9 knows no memory of devices that run one program
                memory = xm.get_memory_info(torch_xla.device())
                figures["memory_gb"] = float(memory.get("peak_bytes_used", memory.get("bytes_used", 0))) / 1e9
        return figures

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Device."""
        from sysscan_plugins.training.devices.xla.layout import whole

        return tensor.detach().cpu() if self.processes > 1 or tensor.device.type != "xla" else whole(tensor)

    def save_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """See Device."""
        from sysscan_plugins.training.devices.xla import state

        state.save(dict(optimizer.tensors()), folder)

    def load_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """See Device."""
        from sysscan_plugins.training.devices.xla import state

        assert self._optimizer is not None
        if checkpoints.is_sharded(folder):
            state.load(dict(optimizer.tensors()), folder)
        else:
            self._optimizer.load(checkpoints.tensors(folder))
        self._optimizer.refresh()
        self._layout.check(self._parameters(), "after resuming")
        self._layout.check(self._optimizer.laid_out(), "after resuming")
        self._guard.skip()

    def _parameters(self) -> Iterator[tuple[str, Any, tuple[str | None, ...]]]:
        for name, parameter in self._model.named_parameters():
            yield name, parameter, self._layout.of_parameter(name, parameter.shape)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """See Device."""
        return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@torch.no_grad()
def _fill(model: Any, weights: Weights, layout: Any) -> None:
    """Replace every parameter and buffer by one on the devices; parameters come one at a time, shared ones once."""
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, leaf))
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = layout.send(buffer.detach().cpu(), (None,) * buffer.ndim)
    expected = dict(model.named_parameters())
    for name, tensor in weights:
        old = expected.pop(name, None)
        if old is None or old.shape != tensor.shape:
            found = "no such parameter" if old is None else f"a parameter of shape {list(old.shape)}"
            raise SysscanError(f"weights were read for {name} {list(tensor.shape)}; the model has {found}")
        sent = layout.send(tensor.detach().to(old.dtype).contiguous(), layout.of_parameter(name, tensor.shape))
        new = torch.nn.Parameter(sent, requires_grad=old.requires_grad)
        for module, leaf in places[id(old)]:
            module._parameters[leaf] = new
    if expected:
        raise SysscanError(f"no weights were read for {len(expected)} parameters: {', '.join(sorted(expected)[:3])}")


def _checkpoint(causal: Any) -> None:
    """Recompute layers in the backward pass, by torch_xla's own function: its barrier keeps XLA from undoing it."""
    from torch_xla.utils.checkpoint import checkpoint

    causal._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint)
    causal.enable_input_require_grads()
