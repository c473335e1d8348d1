"""What a machine has, read from trees of /proc and /sys that the tests lay out, and from a program in nvidia-smi's place."""

from __future__ import annotations

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


def test_a_tpu_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPU_ACCELERATOR_TYPE", "ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)
    assert machine.tpu_type() == ""
    for told, expected in {"v5litepod-8": "v5e-8", "v3-8": "v3-8", "v9-4096": "unknown"}.items():
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
