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


@dataclass(frozen=True)
class Hardware:
    """What is publicly known of a kind of accelerator: of one card, or of a TPU slice."""

    memory: int
    """Bytes of each device."""
    peak_flops: float
    """Dense bf16 operations per second of each device, at most (fp16 on cards that have no bf16)."""
    devices: int = 1
    """Devices in a TPU slice: cores of v2 and v3, chips of the others."""
    hosts: int = 1
    """Machines that they sit in; the program runs on each of them."""


CARDS: Mapping[str, Hardware] = {
    "T4 16 GB": Hardware(15360 << 20, 65e12),
    "V100 32 GB": Hardware(32768 << 20, 125e12),
    "L4 24 GB": Hardware(23034 << 20, 121e12),
    "A10 24 GB": Hardware(23028 << 20, 125e12),
    "RTX 3090 24 GB": Hardware(24576 << 20, 71e12),
    "RTX 4090 24 GB": Hardware(24564 << 20, 165.2e12),
    "RTX 5090 32 GB": Hardware(32607 << 20, 209.5e12),
    "A100 40 GB": Hardware(40960 << 20, 312e12),
    "A6000 48 GB": Hardware(49140 << 20, 154.8e12),
    "L40S 48 GB": Hardware(46068 << 20, 362e12),
    "A100 80 GB": Hardware(81920 << 20, 312e12),
    "H100 80 GB": Hardware(81559 << 20, 989e12),
    "H200 141 GB": Hardware(143771 << 20, 989e12),
    "B200 180 GB": Hardware(183359 << 20, 2250e12),
}
"""Well-known cards: memory as nvidia-smi reports it; peaks of the makers' data sheets, tensor cores with fp32 accumulation,
without sparsity, of the SXM kind where there are several. T4 and V100: fp16."""


def card_peak(name: str) -> float:
    """Return the peak of a card by the name that its driver gives it (`NVIDIA A100-SXM4-80GB`), or 0 for one not in `CARDS`."""
    words = re.split(r"[\s-]+", name)
    for known, hardware in CARDS.items():
        if set(known.split()[:-2]) <= set(words):
            return hardware.peak_flops
    return 0.0


@dataclass(frozen=True)
class _Generation:
    """One generation of TPUs: what a device of it has, and how many of them a host has."""

    memory: int
    peak_flops: float
    per_host: int
    counts_cores: bool = False
    """Whether the number in a slice's name counts cores, of which a chip has two that v4 and v5p offer as one device."""
    single_host: int = 0
    """Largest slice in one host, where that is more than a host of a larger slice has."""


_GENERATIONS: Mapping[str, _Generation] = {
    "v2": _Generation(8 * GIB, 46e12 / 2, 8),
    "v3": _Generation(16 * GIB, 123e12 / 2, 8),
    "v4": _Generation(32 * GIB, 275e12, 4, counts_cores=True),
    "v5e": _Generation(16 * GIB, 197e12, 4, single_host=8),
    "v5p": _Generation(95 * GIB, 459e12, 4, counts_cores=True),
    "v6e": _Generation(32 * GIB, 918e12, 4, single_host=8),
}


def tpu_slice(name: str) -> Hardware | None:
    """Return what a TPU slice of that type has (`v5e-8`, or `v5litepod-8` as Google Cloud writes it); None for no such type.

    Figures of Google's Cloud TPU documentation, the page "System architecture" of each version: HBM and peak bf16 compute per
    chip. A device is what torch_xla sees: of v2 and v3 a core, which has half of its chip's; of the others a chip. Slices of
    v5e and v6e have 4 chips per host, but the ones of up to 8 chips are in one host.
    """
    generation, _, number = name.replace("litepod", "e").partition("-")
    known, size = _GENERATIONS.get(generation), int(number) if number.isdigit() else 0
    if known is None or not size or (known.counts_cores and size % 2):
        return None
    devices = size // 2 if known.counts_cores else size
    hosts = 1 if devices <= max(known.single_host, known.per_host) else -(-devices // known.per_host)
    return Hardware(known.memory, known.peak_flops, devices, hosts)


_SLICES = {
    "v2": (8, 32, 128),
    "v3": (8, 32, 64, 128),
    "v4": (8, 16, 32, 64, 128),
    "v5e": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (8, 16, 32, 64, 128),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
}
TPUS: Mapping[str, Hardware] = {
    f"{generation}-{size}": found
    for generation, sizes in _SLICES.items()
    for size in sizes
    if (found := tpu_slice(f"{generation}-{size}"))
}
"""TPU slices that are offered, the smaller ones first within a generation; `tpu_slice` knows other sizes too."""

TPU_CHIPS = frozenset({"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"})
"""PCI device numbers of TPU chips, of the vendor 0x1ae0, which makes network cards too."""


def tpu_chips(root: Path = ROOT) -> int:
    """Return how many TPU chips sit in this machine, as the PCI bus says; 0 where there are none or it cannot be read."""
    folders = (root / "sys/bus/pci/devices").glob("*")
    return sum(_read(at / "vendor").strip() == "0x1ae0" and _read(at / "device").strip() in TPU_CHIPS for at in folders)


def tpu_nodes(root: Path = ROOT) -> list[Path]:
    """Return the files that stand for TPU chips: /dev/accelN, or since v5 /dev/vfio/N, which other devices may have too."""
    return sorted((root / "dev").glob("accel[0-9]*")) or (sorted((root / "dev/vfio").glob("[0-9]*")) if tpu_chips(root) else [])


def tpu_users(root: Path = ROOT) -> dict[int, str]:
    """Return the other processes that hold a TPU chip, with their names; only those that this user may look into."""
    nodes = {str(node) for node in tpu_nodes(root)}
    found = {}
    for link in (root / "proc").glob("[0-9]*/fd/*") if nodes else ():
        try:
            held = str(link.readlink())
        except OSError:  # it is closed by now
            continue
        number = int(link.parent.parent.name)
        if held in nodes and number != os.getpid():
            found[number] = _read(link.parent.parent / "comm").strip()
    return found


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


def tpu_type(root: Path = ROOT) -> str:
    """Return the TPU that this machine says it has (`v3-8`, ...), `unknown` for one without a known type, or nothing."""
    named = os.environ.get("TPU_ACCELERATOR_TYPE") or os.environ.get("ACCELERATOR_TYPE") or ""
    kind = named.replace("litepod", "e")
    if kind:
        return kind if tpu_slice(kind) else "unknown"
    signs = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID")
    return "unknown" if tpu_chips(root) or tpu_nodes(root) or any(os.environ.get(sign) for sign in signs) else ""


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
