"""The XLA runtime of this process: started for many devices as one program, with what is wrong said in words.

Knows what torch_xla calls the devices; nothing of models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sysscan_models import processes
from sysscan_models.errors import UserError
from sysscan_models.machine import tpu_slice, tpu_type

_INSTALL = "install the two together, of one version: pip install 'torch~=2.9.0' 'torch_xla[tpu]~=2.9.0'"


@dataclass(frozen=True)
class Runtime:
    """What was found when it started."""

    name: str
    """`TPU v5e-8`; `TPU, 8 devices` where the environment does not name it; `4 virtual CPU devices`."""
    devices: int
    """Over all processes."""
    process: int
    processes: int
    peak_flops: float
    """bf16 operations per second of one device; 0 when it is not known."""

    @property
    def is_tpu(self) -> bool:
        """Whether these are TPU cores, not virtual devices on a CPU."""
        return self.name.startswith("TPU")


def start() -> Runtime:
    """Start torch_xla in SPMD mode; raise UserError when there is no TPU, or torch_xla is not there or does not fit."""
    if (several := processes.count()) > 1:
        raise UserError(
            f'device = "tpu", but torchrun has started {several} processes (WORLD_SIZE); expected one on each host, which '
            f"drives all its chips. Run the same command without torchrun, on a slice of several hosts once on each"
        )
    _import_torch_xla()
    import torch_xla.runtime as xr

    kind = xr.device_type()
    if kind == "CPU" and not os.environ.get("CPU_NUM_DEVICES"):
        raise UserError(
            "TPU not available: torch_xla found none and would train on the CPU. Check that this is a TPU runtime (in Colab: "
            "Runtime, Change runtime type, TPU), that torch_xla[tpu] is installed (it brings libtpu), and that PJRT_DEVICE is "
            'TPU or not set. Without a TPU set device = "cpu"; to try the TPU code on virtual devices, set PJRT_DEVICE=CPU '
            "CPU_NUM_DEVICES=4"
        )
    if kind not in ("TPU", "CPU"):
        raise UserError(f'device = "tpu", but PJRT_DEVICE is {kind!r}; expected TPU. Unset it, or set device = "cuda" or "cpu"')
    try:
        if not xr.is_spmd():
            xr.use_spmd()
        devices = xr.global_runtime_device_count()
    except (RuntimeError, OSError) as error:  # OSError: no libtpu
        raise UserError(_not_started(str(error))) from error
    name, peak_flops = _named(kind, devices)
    return Runtime(name, devices, xr.process_index(), xr.process_count(), peak_flops)


def _import_torch_xla() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its C++ parts warn of their own future, several times a step
    try:
        import torch_xla  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f'device = "tpu" needs torch_xla, which is not installed ({error}). In an environment of its own, {_INSTALL}'
        ) from error
    except (ImportError, OSError) as error:  # an undefined symbol, mostly
        import torch

        raise UserError(
            f"torch_xla cannot be loaded ({error}). It fits one version of torch only, and here is torch {torch.__version__}: "
            f"{_INSTALL}"
        ) from error


def _not_started(error: str) -> str:
    """Say why the runtime did not start."""
    advice = "Check that this machine has a TPU and that libtpu is installed (pip install 'torch_xla[tpu]')"
    if "in use" in error or "busy" in error:
        advice = "Another process holds the TPU: end it (lsof /dev/accel* /dev/vfio/* names it) and run the command again"
    return f"TPU not available: the runtime did not start ({error.splitlines()[0] if error else 'no reason given'}). {advice}"


def _named(kind: str, devices: int) -> tuple[str, float]:
    """Return the name of the devices, and their peak if it is known.

    The environment is asked, not the runtime: that knows no device by name once it runs one program over all of them, and when
    it was asked before, the first such program crashes.
    """
    if kind == "CPU":
        return f"{devices} virtual CPU device{'s' if devices > 1 else ''}", 0.0
    generation = tpu_type().partition("-")[0]
    for size in (devices, 2 * devices):  # the names of some generations count cores, of which a device has two
        found = tpu_slice(f"{generation}-{size}")
        if found and found.devices == devices:
            return f"TPU {generation}-{size}", found.peak_flops
    return f"TPU, {devices} device{'s' if devices > 1 else ''}", 0.0
