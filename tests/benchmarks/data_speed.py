"""How long `prepare` takes with every check on, against reading alone, and how much memory it holds.

    python tests/benchmarks/data_speed.py [--megabytes 1000 ...] [--folder FOLDER] [--skip ROW ...]

Builds an archive of generated documents (750 bytes each on average, lists of 500 in a tar.gz; some are copies, some hold
secrets) and times, each once, in a process of its own:
  gzip      `gzip -dc`, nothing else
  bare      stream, parse, and write JSON Lines: no check at all
  original  unpack to disk, load every file, sort by eleven words, write two files
  prepare   `sysscan-models prepare`
Memory is that of the whole process tree: the largest sum of its proportional set sizes (shared pages counted once), looked
at ten times a second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = [
    *("vulnerability", "exploit", "malware", "attack", "threat", "security", "breach", "intrusion", "phishing", "ransomware"),
    "firewall",
]
LIST = 500
"""Documents of one member."""

BARE = """
import sys, tarfile, json
out = open(sys.argv[2] + "/bare.jsonl", "w")
for member in (archive := tarfile.open(sys.argv[1], "r|gz")):
    for record in json.load(archive.extractfile(member)):
        out.write(json.dumps(record) + "\\n")
"""
ORIGINAL = """
import sys, tarfile, json, os, pathlib
target = pathlib.Path(sys.argv[2])
with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(target / "unpacked", filter="data")
words = sys.argv[3].split(",")
with open(target / "specialist.jsonl", "w") as security, open(target / "generalist.jsonl", "w") as general:
    for root, _, names in os.walk(target / "unpacked"):
        for name in names:
            with open(os.path.join(root, name)) as stream:
                for record in json.load(stream):
                    text = json.dumps(record).lower()
                    stream_out = security if any(word in text for word in words) else general
                    stream_out.write(json.dumps(record) + "\\n")
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, nargs="+", default=[1000], help="unpacked size of each archive")
    options.add_argument("--folder", type=Path, default=None, help="keep the archives here, and use those that are here")
    options.add_argument("--skip", nargs="*", default=[], help="rows that are not run")
    given = options.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="data-speed-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for megabytes in given.megabytes:
            measure(built(folder, megabytes), folder / "work", given.skip)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


def measure(archive: Path, work: Path, skip: list[str]) -> None:
    python = [sys.executable, "-c"]
    rows = {
        "gzip": ["gzip", "-dc", str(archive)],
        "bare": [*python, BARE, str(archive), str(work)],
        "original": [*python, ORIGINAL, str(archive), str(work), ",".join(WORDS)],
        "prepare": [sys.executable, "-m", "sysscan_models", "prepare", str(archive), "--out", str(work / "data")],
    }
    print(f"\n{archive.name}: {archive.stat().st_size / 1e6:.0f} MB packed")
    taken: dict[str, float] = {}
    for name, command in rows.items():
        if name in skip:
            continue
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        taken[name], peak = run(command)
        against = "  ".join(f"{taken[name] / taken[other]:6.2f} x {other}" for other in taken if other != name)
        print(f"{name:9} {taken[name]:7.1f} s  {peak / 1e6:6.0f} MB  {against}", flush=True)
    shutil.rmtree(work, ignore_errors=True)


def run(command: list[str]) -> tuple[float, int]:
    """Return the seconds that a command takes and the most memory that it and its children hold together, in bytes."""
    begun = time.monotonic()
    environment = {**os.environ, "SYSSCAN_PROGRESS": "off"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(proportional, tree(process.pid))))
            time.sleep(0.1)
        if process.returncode:
            sys.exit(f"{command[:4]} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    return time.monotonic() - begun, peak


def tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from tree(int(child))


def proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it ended meanwhile
        pass
    return 0


def built(folder: Path, megabytes: int) -> Path:
    archive = folder / f"corpus-{megabytes}MB.tar.gz"
    if archive.exists():
        return archive
    chance, size, number = random.Random(megabytes), 0, 0
    partial = archive.with_suffix(".part")
    with tarfile.open(partial, "w:gz", compresslevel=1) as packed:
        documents: list[dict[str, object]] = []
        for document in generated(chance):
            documents.append(document)
            if len(documents) < LIST:
                continue
            data = json.dumps(documents).encode()
            member = tarfile.TarInfo(f"part-{number:06d}.json")
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
            documents, size, number = [], size + len(data), number + 1
            if size >= megabytes * 1_000_000:
                break
    return partial.rename(archive)


def generated(chance: random.Random) -> Iterator[dict[str, object]]:
    vocabulary = [*("".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(3, 9))) for _ in range(8000))]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    cumulated = [0.0]
    for weight in weights:
        cumulated.append(cumulated[-1] + weight)
    last: dict[str, object] = {}
    number = 0
    while True:
        number += 1
        kind = chance.random()
        if last and kind < 0.02:
            yield dict(last)
            continue
        said = chance.choices(vocabulary, cum_weights=cumulated[1:], k=chance.randint(60, 130))
        if kind < 0.5:
            said[4:60:15] = chance.choices(WORDS, k=4)
        if kind > 0.99:
            said[20] = "password=" + "".join(chance.choices("abcdefghijkABCDEFGH0123456789", k=16))
        words = [" ".join(said[:8]), " ".join(said[8:40]), " ".join(said[40:])]
        last = {"id": f"doc-{number}", "title": words[0], "description": words[1], "content": words[2], "findings": [words[0]]}
        yield last
        if kind > 0.97:
            yield {**last, "content": f"{words[2]} {chance.choice(vocabulary)}"}


if __name__ == "__main__":
    main()
