"""What a machine has, read from trees of /proc and /sys that the tests lay out, and from a program in nvidia-smi's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sysscan_models import machine

MIB = 1 << 20


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    texts = {
        "proc/meminfo": "MemTotal:       8000000 kB\nMemFree:  100 kB\nMemAvailable:   6000000 kB\n",
        "proc/self/cgroup": cgroup,
    }
    for name, text in {**texts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_memory_without_control_groups_is_what_the_kernel_says(tmp_path: Path) -> None:
    found = machine.memory(system(tmp_path, "0::/\n", {}))
    assert found == machine.Memory(8_000_000 << 10, 6_000_000 << 10, limited=False)


def test_a_limit_of_a_control_group_above_counts_and_caches_are_free(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/memory.max": f"{1000 * MIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{700 * MIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {200 * MIB}\nactive_file {100 * MIB}\nfile_mapped 5\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "5\n",
    }
    found = machine.memory(system(tmp_path, "0::/a/b\n", files))
    assert found == machine.Memory(1000 * MIB, 600 * MIB, limited=True)


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/job"
    files = {
        f"{folder}/memory.limit_in_bytes": str(500 * MIB),
        f"{folder}/memory.usage_in_bytes": str(450 * MIB),
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    found = machine.memory(system(tmp_path, "4:cpu:/x\n3:memory:/job\n0::/\n", files))
    assert found == machine.Memory(500 * MIB, 100 * MIB, limited=True)


def test_this_machine_has_memory_disk_and_processors(tmp_path: Path) -> None:
    found = machine.memory()
    assert 0 < found.available <= found.total
    assert machine.free_disk(tmp_path / "not" / "there" / "yet") == pytest.approx(machine.free_disk(tmp_path), rel=0.1)
    assert machine.existing_folder(tmp_path / "not" / "there") == tmp_path
    assert machine.processors() >= 1


def test_cards_are_those_of_nvidia_smi_that_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "NVIDIA A100, big, 81920, 80000", "Tesla T4, 15360, [N/A]", "garbage")
    big, small = machine.Accelerator("NVIDIA A100, big", 81920 * MIB, 80000 * MIB), machine.Accelerator("Tesla T4", 15360 * MIB)
    assert machine.cards() == (big, small)
    for visible, expected in {"1": (small,), "1,0": (small, big), "": (), "-1": (), "7": (), "GPU-abc": (big, small)}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.cards() == expected, visible


def test_a_driver_that_fails_has_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "NVIDIA A100, 81920, 80000", code=9)
    assert machine.cards() == ()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert machine.cards() == ()


def clear_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPU_ACCELERATOR_TYPE", "ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)


def pci(root: Path, *devices: tuple[str, str]) -> None:
    """Lay out the devices of a PCI bus: vendor and device number each."""
    for index, (vendor, device) in enumerate(devices):
        folder = root / f"sys/bus/pci/devices/0000:00:{index:02}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")


def test_slices_have_the_published_devices_hosts_memory_and_peaks() -> None:
    gib = 1 << 30
    published = {
        "v2-8": (8, 1, 8, 23e12),
        "v3-8": (8, 1, 16, 61.5e12),
        "v3-32": (32, 4, 16, 61.5e12),
        "v4-8": (4, 1, 32, 275e12),
        "v5e-1": (1, 1, 16, 197e12),
        "v5e-8": (8, 1, 16, 197e12),
        "v5e-16": (16, 4, 16, 197e12),
        "v5p-8": (4, 1, 95, 459e12),
        "v5p-128": (64, 16, 95, 459e12),
        "v6e-8": (8, 1, 32, 918e12),
    }
    for name, (devices, hosts, memory, peak) in published.items():
        assert machine.TPUS[name] == machine.Hardware(memory * gib, peak, devices, hosts), name
    assert machine.tpu_slice("v5litepod-16") == machine.TPUS["v5e-16"]
    assert [machine.tpu_slice(name) for name in ("v7-8", "v4-7", "v5e", "v5e-x", "v5e-0", "T4 16 GB", "")] == [None] * 7


def test_cards_have_a_memory_and_a_peak() -> None:
    assert machine.CARDS["T4 16 GB"] == machine.Hardware(15360 * MIB, 65e12)
    assert machine.CARDS["A100 80 GB"].peak_flops == machine.CARDS["A100 40 GB"].peak_flops == 312e12
    for name, card in machine.CARDS.items():
        told = int(name.split()[-2]) * 10**9
        assert 0.95 * told < card.memory < 1.11 * told, name
        assert (card.devices, card.hosts) == (1, 1)


def test_chips_are_found_on_the_bus_and_network_cards_of_the_same_maker_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_tpu(monkeypatch)
    pci(tmp_path, ("0x1ae0", "0x0042"), ("0x8086", "0x0063"))
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/3").touch()
    assert (machine.tpu_chips(tmp_path), machine.tpu_nodes(tmp_path), machine.tpu_type(tmp_path)) == (0, [], "")
    other = tmp_path / "other"
    pci(other, ("0x1ae0", "0x0063"), ("0x1ae0", "0x0063"))
    assert (machine.tpu_chips(other), machine.tpu_nodes(other), machine.tpu_type(other)) == (2, [], "unknown")
    (other / "dev/vfio").mkdir(parents=True)
    for name in ("0", "1", "vfio"):
        (other / "dev/vfio" / name).touch()
    assert [node.name for node in machine.tpu_nodes(other)] == ["0", "1"]
    (other / "dev/accel0").touch()
    assert [node.name for node in machine.tpu_nodes(other)] == ["accel0"]


def test_programs_that_hold_a_chip_are_named(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/accel0").touch()
    assert machine.tpu_users(tmp_path) == {}
    for number, target in ((41, tmp_path / "dev/accel0"), (42, tmp_path / "dev/null"), (os.getpid(), tmp_path / "dev/accel0")):
        (tmp_path / f"proc/{number}/fd").mkdir(parents=True)
        (tmp_path / f"proc/{number}/comm").write_text("python\n")
        (tmp_path / f"proc/{number}/fd/3").symlink_to(target)
    assert machine.tpu_users(tmp_path) == {41: "python"}


def test_a_tpu_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_tpu(monkeypatch)
    assert machine.tpu_type() == ""
    for told, expected in {"v5litepod-8": "v5e-8", "v3-8": "v3-8", "v6e-512": "v6e-512", "v9-4096": "unknown"}.items():
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", told)
        assert machine.tpu_type() == expected
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
    monkeypatch.setenv("TPU_NAME", "local")
    assert machine.tpu_type() == "unknown"


def test_features_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert machine.processor_flags(tmp_path) == frozenset()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert machine.processor_flags(tmp_path) == {"fp", "asimd", "bf16"}
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: sse2 avx2 amx_bf16\nflags\t\t: other\n")
    assert machine.processor_flags(tmp_path) == {"sse2", "avx2", "amx_bf16"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA A10", "A10 24 GB"),
        ("Tesla T4", "T4 16 GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80 GB"),
    ],
)
def test_a_card_is_known_by_its_drivers_name(name: str, known: str) -> None:
    assert machine.card_peak(name) == machine.CARDS[known].peak_flops
    assert machine.card_peak("NVIDIA GeForce GT 710") == 0
