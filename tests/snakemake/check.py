#!/usr/bin/env python3
"""Runs assets/snakemake on two local workers, kills it, runs it again, and compares with one run.

    python3 tests/snakemake/check.py target/release/undertext

Snakemake comes from PyPI into a temporary environment; SNAKEMAKE=PATH names one that is there. Without either the check is
skipped, and says so; with --require that is a failure.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SNAKEFILE = HERE.parent.parent / "assets/snakemake/Snakefile"
SHARDS = 4
LIMIT = 4


def snakemake(root):
    """The program, installed if it must be; None if it cannot be."""
    if "SNAKEMAKE" in os.environ:
        return os.environ["SNAKEMAKE"]
    environment = root / "venv"
    if subprocess.run([sys.executable, "-m", "venv", environment], check=False).returncode != 0:
        return None
    pip = [environment / "bin/pip", "--disable-pip-version-check", "--timeout", "10", "--retries", "1"]
    installed = subprocess.run([*pip, "install", "-q", "-r", HERE / "requirements.txt"], check=False)
    return environment / "bin/snakemake" if installed.returncode == 0 else None


def figures(folder):
    """A report without what may differ between one run and several."""
    report = json.loads((folder / "report.json").read_text())
    for name in ["counters", "gpu_seconds", "gpu_timed_dispatches"]:
        report.pop(name, None)
    return report


def stored(folder):
    """Answers in a run folder."""
    return sum(len(file.read_text().splitlines()) for file in folder.glob("observations/*.jsonl"))


def kill(process):
    """SIGKILL for a process and everything in its session, until nothing of it is left."""
    while True:
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if int(session) == process.pid and state not in "ZX":
                alive.append(int(stat.parent.name))
        if not alive:
            return process.wait()
        # What has come into being since is found the next time.
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def main():
    program = Path(sys.argv[1]).resolve()
    root = Path(tempfile.mkdtemp(prefix="undertext-snakemake-"))
    try:
        tool = snakemake(root)
        if tool is None:
            print("SKIPPED: Snakemake could not be installed from PyPI")
            return 1 if "--require" in sys.argv else 0
        check_lines(program, root, tool)
        check(program, root, tool)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def check_lines(program, root, tool):
    """What the shipped configuration runs, and lists and switches besides, is a command line of the program."""
    audit = {"target": "t", "unlearned": ["a", "b"], "data": "d", "precision": ["int8", "int4"], "dose": [0.5, 1],
             "series": ["size=a@1,b@2"], "quantize-head": True, "no-survival": False, "flags": "--limit 20 --vram 9GiB"}
    (root / "lists.json").write_text(json.dumps({"undertext": "undertext", "audits": {"lists": audit}}))
    for config, parts in [
        (SNAKEFILE.with_name("config.yaml"), ["--limit 1", "kernels/kernels.json", "--shard 4/4", "--vram 22GiB"]),
        (root / "lists.json", ["--dose 0.5 --dose 1", "--quantize-head", "--limit 1", "--limit 20"]),
    ]:
        command = [tool, "-s", SNAKEFILE, "--configfile", config, "-n", "-p", "--cores", "1"]
        dry = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        printed = dry.stdout + dry.stderr
        for part in parts:
            assert part in printed, (part, printed)
        lines = re.findall(r"undertext (?:--quiet )?audit ([^>|\n]*)", printed)
        assert lines, printed
        for line in lines:
            line = [program, "audit", *shlex.split(line), "--device", "cpu"]
            found = subprocess.run(line, cwd=root, capture_output=True, text=True)
            # There are no such checkpoints; the words are right.
            assert found.returncode == 3, (line, found.returncode, found.stderr)


def check(program, root, tool):
    flags = "--device cpu --resamples 100"
    line = ["demo", "--limit", str(LIMIT), *flags.split()]
    began = time.monotonic()
    subprocess.run([program, "--quiet", *line, "--out", root / "whole"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    config = {
        "undertext": str(program),
        "out": "grid",
        "audits": {"demo": {"demo": True, "shards": SHARDS, "limit": LIMIT, "flags": flags}},
    }
    (root / "config.json").write_text(json.dumps(config))
    command = [tool, "-s", SNAKEFILE, "--configfile", "config.json", "--cores", "2"]
    shards = [root / f"grid/demo/shards/{number}-of-{SHARDS}" for number in range(1, SHARDS + 1)]
    flag = {shard: shard.with_name(f"{shard.name}.done") for shard in shards}
    done = lambda: [shard for shard in shards if flag[shard].exists()]

    # Killed with all its jobs, when one shard is done and another one is half way.
    log = (root / "first.log").open("wb")
    first = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 60 + 10 * seconds
    finished = lambda: "Finished jobid" in (root / "first.log").read_text()
    while not (finished() and any(stored(shard) > 3 for shard in shards if not flag[shard].exists())):
        assert first.poll() is None, "it ended before it could be killed:\n" + (root / "first.log").read_text()
        assert time.monotonic() < deadline, "no shard comes to its end"
        time.sleep(0.02)
    kill(first)
    before = {shard: flag[shard].stat().st_mtime_ns for shard in done()}
    kept = {shard: stored(shard) for shard in shards if shard not in before and stored(shard)}
    assert 0 < len(before) < SHARDS and kept, (before, kept)
    assert not (root / "grid/demo/report.done").exists()

    # A killed Snakemake leaves its lock.
    subprocess.run([*command, "--unlock"], cwd=root, check=True, capture_output=True)
    second = subprocess.run([*command, "--rerun-incomplete"], cwd=root, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    again = [shard for shard, time_ns in before.items() if flag[shard].stat().st_mtime_ns != time_ns]
    assert len(again) < len(before), f"{again} were done and are run again"
    for shard in again:
        # Killed before Snakemake had written down that it was done: run again, it asks nothing.
        found = re.findall(r"(\d+) of (\d+) answers are there already", (shard / "run.log").read_text())
        assert found and found[-1][0] == found[-1][1], f"{shard} is asked again"
    for shard, answers in kept.items():
        said = (shard / "run.log").read_text()
        assert "going on in" in said and "answers are there already" in said, said
        assert stored(shard) >= answers
    one, many = figures(root / "whole"), figures(root / "grid/demo/merged")
    assert one["complete"] and one["arms"] and one["survival"] and one["divergence"]
    different = [name for name in one.keys() | many.keys() if one.get(name) != many.get(name)]
    assert not different, f"differ: {different}"
    # Everything is done: nothing is run once more.
    third = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "Nothing to be done" in third.stdout + third.stderr, third.stderr
    print(
        f"killed with {len(before)} of {SHARDS} shards done and {sum(kept.values())} answers of others kept;"
        " run again, the merged report is that of one run"
    )


if __name__ == "__main__":
    sys.exit(main())
