"""Checks of the machine: accelerators, processor, threads, memory, disk."""

from __future__ import annotations

import os
from pathlib import Path

from sysscan_models import machine
from sysscan_models.config import RunConfig
from sysscan_models.doctor.checks import Check, Verdict
from sysscan_models.planning.figures import size

LARGE_MEMORY, LARGE_DISK = 32_000_000_000, 100_000_000_000
"""What the recipes for 8B models and larger ask of memory and disk at least."""

_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def accelerator(config: RunConfig | None) -> Check:
    """Check the CUDA devices, and that the installed torch can use them."""
    name, asked, cards = "gpu", config.device if config else "auto", machine.cards()
    torch, wanted = machine.version("torch"), asked.startswith("cuda")
    if not cards:
        if Path("/proc/driver/nvidia/version").exists():
            return Check(
                name, "fail" if wanted else "warn", "an NVIDIA driver is loaded, but nvidia-smi lists no card",
                "See what `nvidia-smi` says; in a container, start it with access to the GPUs (`--gpus all`)",
            )  # fmt: skip
        if wanted:
            return Check(
                name, "fail", f"no NVIDIA card was found, and the configuration asks for {asked}",
                'Use a machine with a card (on Colab: Runtime > Change runtime type), or set device = "auto"',
            )  # fmt: skip
        return Check(name, "ok", "no NVIDIA card was found; training would run on the processor")
    found = ", ".join(f"{card.name} ({size(card.total)}, {size(card.free)} free)" for card in cards)
    if not torch:
        return Check(name, "ok", f"{found}; torch is not installed")
    if not machine.has_cuda_torch():
        advice = "Install a build of torch with CUDA: https://pytorch.org/get-started/locally"
        return Check(name, "fail" if wanted else "warn", f"{found}; but torch {torch} is built for the CPU only", advice)
    if not machine.torch_cards():
        advice = "The driver may be older than this torch needs: update the driver, or install torch for its CUDA version"
        return Check(name, "fail" if wanted else "warn", f"{found}; but torch {torch} finds no CUDA device", advice)
    return Check(name, "ok", f"{found}; torch {torch}")


def tpu(config: RunConfig | None) -> Check:
    """Check for a TPU, and that torch_xla is there and of torch's version."""
    name, kind, wanted = "tpu", machine.tpu_type(), config is not None and config.device == "tpu"
    torch, xla = machine.version("torch"), machine.version("torch_xla")
    bad: Verdict = "fail" if wanted else "warn"
    if not kind:
        if not wanted:
            return Check(name, "ok", "none was found, and none is asked for")
        advice = "On Colab: Runtime > Change runtime type > TPU (some types need Colab Pro+). Elsewhere use a Cloud TPU VM. "
        advice += "This release cannot train on a TPU yet"
        return Check(name, "fail", "no TPU was found (no /dev/accel*, none of the TPU's environment variables)", advice)
    found = f"TPU {kind}" if kind != "unknown" else "a TPU of unknown type"
    if not xla:
        return Check(name, bad, f"{found}; torch_xla is not installed", "pip install 'sysscan-models[tpu]'")
    if _minor(xla) != _minor(torch):
        found = f"{found}; torch_xla {xla} does not belong to torch {torch or '(not installed)'}"
        return Check(name, bad, found, "Both must have the same version: pip install 'sysscan-models[tpu]'")
    runtime = os.environ.get("PJRT_DEVICE", "TPU")
    if runtime != "TPU":
        return Check(name, bad, f"{found}, but PJRT_DEVICE is {runtime!r}", "export PJRT_DEVICE=TPU")
    return Check(name, "ok", f"{found}; torch_xla {xla}, torch {torch}")


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def processor(config: RunConfig | None) -> Check:
    """Check for instructions that matter: bf16 for training on the processor, AVX2 for builds of llama.cpp."""
    flags, count = machine.processor_flags(), machine.processors()
    found = f"{count} processor{'s' if count > 1 else ''}"
    if not flags:
        return Check("processor", "ok", f"{found}; its features are not known")
    if "sse2" in flags and "avx2" not in flags:
        return Check(
            "processor", "warn", f"{found} without AVX2",
            "Built wheels of torch and llama-cpp-python may crash here; build llama-cpp-python on this machine",
        )  # fmt: skip
    fast = sorted(flags & _BF16)
    trains_here = config is not None and config.device in ("auto", "cpu") and not machine.cards()
    parts = list(config.roles.values()) if config and trains_here else []
    bf16 = any(getattr(part.trainer, "compute_dtype", "") == "bfloat16" for part in parts)
    if bf16 and not fast:
        advice = (
            'Training in bfloat16 is slow without; compute_dtype = "float32" may be faster (activations take twice the memory)'
        )
        return Check("processor", "warn", f"{found} without bf16 instructions", advice)
    return Check("processor", "ok", f"{found}, {'bf16 by ' + ', '.join(fast) if fast else 'no bf16 instructions'}")


def threads() -> Check:
    """Check the settings of OpenMP: too many threads, or spinning ones beside other work, slow each other badly."""
    count, setting = machine.processors(), os.environ.get("OMP_NUM_THREADS", "")
    load = os.getloadavg()[0]
    if setting.isdigit() and int(setting) > count:
        found = f"OMP_NUM_THREADS={setting}, but this process may use {count}"
        return Check("threads", "warn", found, f"export OMP_NUM_THREADS={count}")
    if load > count / 2 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        found = f"this machine is busy (load {load:.1f} on {count} processors)"
        return Check("threads", "warn", found, "Beside other work set: export OMP_WAIT_POLICY=passive")
    return Check("threads", "ok", f"OMP_NUM_THREADS={setting}" if setting else f"as many as there are processors ({count})")


def memory() -> Check:
    """Say how much memory there is; what a run needs of it is the plan's business."""
    found = machine.memory()
    if not found.total:
        return Check("memory", "warn", "its size is not known")
    limit = ", limited by a control group" if found.limited else ""
    told = f"{size(found.available)} free of {size(found.total)}{limit}"
    if found.total < LARGE_MEMORY * 0.95:
        return Check("memory", "ok", told, f"Enough for small models; those of 8B and more need {size(LARGE_MEMORY)} and more")
    return Check("memory", "ok", told)


def disk(folder: Path) -> Check:
    """Say how much disk is free where the models go; what a run needs of it is the plan's business."""
    free = machine.free_disk(folder)
    place = machine.existing_folder(folder)
    if not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{place} cannot be written to", "Set models_dir to a folder of yours")
    advice = "" if free >= LARGE_DISK else f"Enough for small models; those of 8B and more need {size(LARGE_DISK)} and more"
    return Check("disk", "ok", f"{size(free)} free at {place}", advice)
