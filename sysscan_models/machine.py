"""What of a machine a run depends on: memory, disk, accelerators, processor.

Everything is read from the system (/proc, cgroups, nvidia-smi, the environment); torch is never imported, at most asked in a
process of its own. `root` lets a test, or a mounted system, stand for `/`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIB = 1 << 30
ROOT = Path("/")


@dataclass(frozen=True)
class Memory:
    """RAM in bytes. `total` is the smaller of what is installed and what the control groups allow; 0 = not known."""

    total: int
    available: int
    limited: bool = False
    """Whether a control group (a container's limit, a batch system's) is what bounds it."""


def memory(root: Path = ROOT) -> Memory:
    """Return the memory that a program started now could use."""
    total, available = _installed(root)
    limited = False
    for limit, used in _cgroup_limits(root):
        if limit < total or not total:
            total, limited = limit, True
        available = min(available, max(0, limit - used))
    return Memory(total, available, limited)


def _installed(root: Path) -> tuple[int, int]:
    fields: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    if "MemTotal" in fields:
        free = int(fields.get("MemAvailable", fields.get("MemFree", "0")))
        return int(fields["MemTotal"]) << 10, free << 10
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        installed = 0
    return installed, installed


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of this process's control groups and all above them; caches count as free."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        here = Path(path.strip().lstrip("/"))
        for folder in (mount / here, *(mount / parent for parent in here.parents if here.parts)):
            limit, used = _read(folder / names[0]).strip(), _read(folder / names[1]).strip()
            if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:
                cached = re.findall(rf"^{names[2]}(?:in)?active_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield int(limit), max(0, int(used) - sum(map(int, cached)))


def existing_folder(path: Path) -> Path:
    """Return the nearest folder at or above a path that exists."""
    path = Path(path).absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def free_disk(path: Path) -> int:
    """Return the bytes that this user may still write on the file system that holds a path (which need not exist yet)."""
    return shutil.disk_usage(existing_folder(path)).free


@dataclass(frozen=True)
class Accelerator:
    """One accelerator: its name and its memory in bytes; `free` is 0 when it is not known."""

    name: str
    total: int
    free: int = 0


CARDS: Mapping[str, int] = {
    "T4 16 GB": 15360 << 20,
    "V100 32 GB": 32768 << 20,
    "L4 24 GB": 23034 << 20,
    "A10 24 GB": 23028 << 20,
    "RTX 3090 24 GB": 24576 << 20,
    "RTX 4090 24 GB": 24564 << 20,
    "RTX 5090 32 GB": 32607 << 20,
    "A100 40 GB": 40960 << 20,
    "A6000 48 GB": 49140 << 20,
    "L40S 48 GB": 46068 << 20,
    "A100 80 GB": 81920 << 20,
    "H100 80 GB": 81559 << 20,
    "H200 141 GB": 143771 << 20,
    "B200 180 GB": 183359 << 20,
}
"""Memory of well-known cards in bytes, as nvidia-smi reports it."""

TPUS: Mapping[str, tuple[int, int]] = {
    "v2-8": (8, 8 * GIB),
    "v3-8": (8, 16 * GIB),
    "v4-8": (4, 32 * GIB),
    "v5e-8": (8, 16 * GIB),
    "v5p-8": (4, 95 * GIB),
    "v6e-8": (8, 32 * GIB),
}
"""Devices of a TPU host, and the memory of each in bytes."""


def cards() -> tuple[Accelerator, ...]:
    """Return the NVIDIA cards that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide, in its order; empty without."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    found = []
    for line in _output(query, seconds=20).splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3 and fields[1].isdigit():
            free = int(fields[2]) << 20 if fields[2].isdigit() else 0
            found.append(Accelerator(fields[0], int(fields[1]) << 20, free))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not re.fullmatch(r"\s*-?\d*\s*(,\s*\d+\s*)*", visible):
        return tuple(found)  # not restricted, or by identifiers that only the driver can tell apart
    return tuple(found[int(index)] for index in visible.split(",") if index.strip().isdigit() and int(index) < len(found))


def torch_cards() -> tuple[Accelerator, ...] | None:
    """Ask torch, in a process of its own, for the CUDA devices in its order; None when there is no torch to ask."""
    if not version("torch"):
        return None
    script = (
        "import torch\n"
        "for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):\n"
        "    free, total = torch.cuda.mem_get_info(index)\n"
        "    print('device', total, free, torch.cuda.get_device_name(index), sep='\\t')\n"
    )
    lines = _output([sys.executable, "-c", script], seconds=120).splitlines()
    fields = [line.split("\t") for line in lines if line.startswith("device\t")]
    return tuple(Accelerator(name, int(total), int(free)) for _, total, free, name in fields)


def has_cuda_torch() -> bool:
    """Say whether the installed torch may know CUDA; a build for the CPU says so in its version."""
    return bool(installed := version("torch")) and "+cpu" not in installed


def tpu_type() -> str:
    """Return the TPU that this machine says it has (`v3-8`, ...), `unknown` for one without a known type, or nothing."""
    named = os.environ.get("TPU_ACCELERATOR_TYPE") or os.environ.get("ACCELERATOR_TYPE") or ""
    kind = named.replace("litepod", "e")
    if kind:
        return kind if kind in TPUS else "unknown"
    signs = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID")
    has_device = any(Path("/dev").glob("accel[0-9]*"))
    return "unknown" if has_device or any(os.environ.get(sign) for sign in signs) else ""


def processor_flags(root: Path = ROOT) -> frozenset[str]:
    """Return the features of the processor as Linux names them (`avx2`, `amx_bf16`; on ARM `bf16`); empty when not known."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str:
    """Return the installed version of a distribution, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _output(command: list[str], *, seconds: float) -> str:
    """Return what a program prints, or nothing when it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603 - our own words
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
