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
    """Check for a TPU, that torch_xla and libtpu are there and of torch's version, and that nothing keeps them from it."""
    wanted = config is not None and config.device == "tpu"
    kind, bad = machine.tpu_type(), _bad(wanted)
    if not kind and wanted and os.environ.get("PJRT_DEVICE") == "CPU":
        return _virtual(os.environ.get("CPU_NUM_DEVICES", "1"))
    if not kind:
        return _no_tpu() if wanted else Check("tpu", "ok", "none was found, and none is asked for")
    found = _tpu_text(kind)
    if fault := _without_software() or _kept_away():
        return Check("tpu", bad, f"{found}; {fault[0]}", fault[1])
    told = f"{found}; torch_xla {machine.version('torch_xla')}, torch {machine.version('torch')}"
    known = machine.tpu_slice(kind)
    if known and known.hosts > 1:
        advice = "Run the same command on every one of them (`gcloud compute tpus tpu-vm ssh NAME --worker=all --command=...`)"
        return Check("tpu", "ok", f"{told}; the slice has {known.hosts} machines", advice)
    return Check("tpu", "ok", told)


def _bad(wanted: bool) -> Verdict:
    return "fail" if wanted else "warn"


def _virtual(count: str) -> Check:
    found = f"PJRT_DEVICE is 'CPU': {count} virtual device{'s' if count != '1' else ''} on the processor stand for a TPU"
    return Check("tpu", "warn", found, "Good for tests only; to train on a TPU: unset PJRT_DEVICE")


def _no_tpu() -> Check:
    """Say what to do where a TPU is asked for and nothing speaks for one."""
    if os.environ.get("COLAB_RELEASE_TAG"):
        advice = "Runtime > Change runtime type > TPU; some types need a paid plan (Colab Pro+). The runtime then starts anew"
    else:
        advice = "Use a Cloud TPU VM, or Colab (Runtime > Change runtime type > TPU; some types need Colab Pro+)"
    advice += '. `sysscan-models plan --on v5e-8` plans for one from here; device = "auto" trains on what there is'
    return Check(
        "tpu",
        "fail",
        "no TPU was found (no chip on the PCI bus, no /dev/accel*, none of the TPU's environment variables)",
        advice,
    )


def _tpu_text(kind: str) -> str:
    chips, known = machine.tpu_chips(), machine.tpu_slice(kind)
    found = f"TPU {kind}" if known else "a TPU of unknown type"
    if known:
        found += f" ({known.devices} device{'s' if known.devices > 1 else ''} of {size(known.memory)})"
    return f"{found}, {chips} chip{'s' if chips > 1 else ''} in this machine" if chips else found


def _without_software() -> tuple[str, str] | None:
    """Return what is wrong with the installation, and what to do; None when nothing is."""
    install = "pip install 'sysscan-models[tpu]'"
    torch, xla = machine.version("torch"), machine.version("torch_xla")
    if not xla:
        return "torch_xla is not installed", install
    if _minor(xla) != _minor(torch):
        fault = f"torch_xla {xla} does not belong to torch {torch or '(not installed)'}"
        return fault, f"Both must have the same version: {install}"
    if not machine.version("libtpu") and not os.environ.get("TPU_LIBRARY_PATH"):
        return f"torch_xla {xla} is here, but not libtpu, which drives the chips", install
    if machine.version("torch_tpu"):
        return "torch_tpu is installed too, and brings another libtpu", f"Give each an environment of its own: {install}"
    return None


def _kept_away() -> tuple[str, str] | None:
    """Return what keeps a program from the TPU that is there, and what to do; None when nothing does."""
    runtime = os.environ.get("PJRT_DEVICE", "TPU")
    if runtime != "TPU":
        return f"but PJRT_DEVICE is {runtime!r}", "export PJRT_DEVICE=TPU"
    nodes = machine.tpu_nodes()
    if machine.tpu_chips() and not nodes:
        return (
            "but neither /dev/accel* nor /dev/vfio/* is here",
            "In a container, start it with access to them (`--privileged`)",
        )
    if closed := [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]:
        return f"but {', '.join(closed)} cannot be opened by this user", "Run as root, or let your user's group open them"
    if users := machine.tpu_users():
        named = ", ".join(f"{name} ({number})" for number, name in users.items())
        return (
            f"but it is in use by {named}",
            "One program at a time can use a TPU: end that one, or restart its notebook's kernel",
        )
    return None


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
