"""Disturbs a small run by faults, again and again, and checks that it ends as an undisturbed one.

    python -m benchmarks.faults --sigkill=30 --sigterm=10 --lost=5 --damaged=5 --full=3

A run is started, disturbed at a random time and started again, until it ends by itself. Then its
parameters, bit for bit, and its rows but for timings must be those of a run left alone; whenever it
is down, each model that loads must be one of the undisturbed run's, and training must go on from
the newest whole checkpoint. Kinds of faults:

  sigkill, sigterm   to the only process
  lost               SIGKILL to one of two processes; the other must stop within a minute
  damaged            the newest checkpoint's largest file is cut, overwritten or removed
  full               the run directory is a tmpfs that is too small, and then grows (needs root)

Writes a row a run to --out as it goes; what is there already is not done again.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import pdistill
from pdistill.model import ModelError
from pdistill.runtime.files import read_jsonl, write_atomically
from pdistill.training import EXIT_CODE

ROOT = Path(__file__).parent.parent
STAGES = ("teacher", "progressive/2", "progressive/1")
LIMIT = 60  # seconds in which processes that are asked to stop, or have lost another one, must end
HANGS = 600  # seconds after which a run that should end by itself hangs
FAULTS_A_RUN = 5
KINDS = ("sigkill", "sigterm", "lost", "damaged", "full")
SIZES = (900, 1500, 2200)  # KiB of the full disks: in training, exporting and reporting


class Wrong(Exception):
    """An error: a fault has changed what a run leaves."""


def start(workdir: Path, processes: int = 1) -> list[subprocess.Popen]:
    """Starts the run's processes; their output is added to <workdir>.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "pdistill.main", f"--workdir={workdir}"),
        f"--config={ROOT / 'tests/tiny_experiment.py'}",
    ]
    places = [[]]
    if processes > 1:
        place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
        places = [[*place, f"--process_id={i}"] for i in range(processes)]
    with workdir.with_suffix(".log").open("a") as log:
        return [
            subprocess.Popen(
                command + place,
                env=os.environ | {
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
                    "XLA_FLAGS": "--xla_backend_optimization_level=1",
                },
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
            for place in places
        ]  # fmt: skip


def finish(started: list[subprocess.Popen], limit: float) -> list[int]:
    """Waits for exit codes; raises Wrong if a process is still there after `limit` seconds."""
    end = time.monotonic() + limit
    try:
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in started]
    except subprocess.TimeoutExpired as error:
        for process in started:
            process.kill()
        raise Wrong(f"it hangs: not over after {limit} s") from error


@dataclasses.dataclass
class Run:
    """One run and its faults."""

    workdir: Path
    processes: int
    desired: "Outcome | None" = None
    faults: list[dict] = dataclasses.field(default_factory=list)

    def go_on(self) -> None:
        """Runs to the end."""
        expected = self.newest()
        before = self.said()
        codes = finish(start(self.workdir, self.processes), HANGS)
        if any(codes):
            raise Wrong(f"it does not go on: exit codes {codes}")
        self.check_resumed(expected, self.said()[len(before) :])

    def said(self) -> str:
        log = self.workdir.with_suffix(".log")
        return log.read_text() if log.exists() else ""

    def newest(self) -> int | None:
        """Finds the newest whole checkpoint of the stage in training; None at its start."""
        for stage in STAGES:
            if not (self.workdir / stage / "model").exists():
                saved = (self.workdir / stage / "checkpoints").glob("*")
                return max((int(p.name) for p in saved if p.name.isdigit()), default=None)
        return None

    def check_resumed(self, expected: int | None, said: str) -> None:
        steps = [int(step) for step in re.findall(r"resumes at step (\d+)", said)]
        if expected not in (None, *steps[:1], 8):  # at 8, the last one, nothing is left to train
            raise Wrong(f"saved at step {expected}, resumed at {steps}")

    def check_models(self) -> None:
        """Checks that each model that loads is whole."""
        for stage, leaves in zip(STAGES, self.desired.params, strict=True):
            try:
                found = params(self.workdir / stage)
            except ModelError:
                continue
            if not same(found, leaves):
                raise Wrong(f"{stage} loads, with other parameters")

    def check_end(self) -> None:
        found = Outcome.of(self.workdir)
        if found.rows != self.desired.rows:
            raise Wrong("other rows")
        if not all(same(a, b) for a, b in zip(found.params, self.desired.params, strict=True)):
            raise Wrong("other parameters")


@dataclasses.dataclass
class Outcome:
    """The outcome of a run, its rows but for timings and its parameters by stage."""

    rows: list[dict]
    params: list[list[np.ndarray]]

    @classmethod
    def of(cls, workdir: Path) -> "Outcome":
        rows = read_jsonl(workdir / "results.jsonl")
        rows = [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows]
        return cls(rows, [params(workdir / stage) for stage in STAGES])


def params(directory: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(pdistill.load(directory).network.params)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def by_signal(run: Run, number: signal.Signals, seconds: float, rng: random.Random, most: int):
    """Signals one of the processes at random times, up to `most` times."""
    while len(run.faults) < most:
        expected, before = run.newest(), run.said()
        after = rng.uniform(0.1, 1) * seconds
        started = start(run.workdir, run.processes)
        victim = rng.randrange(run.processes)
        try:
            if started[victim].wait(after):
                raise Wrong(f"it ended by itself with {started[victim].returncode}")
            finish(started, LIMIT)
            break
        except subprocess.TimeoutExpired:
            pass
        clock = time.monotonic()
        started[victim].send_signal(number)
        codes = finish(started, LIMIT)
        fault = {"after": round(after, 1), "process": victim, "exits": codes}
        run.faults.append(fault | {"stopped_in": round(time.monotonic() - clock, 1)})
        if number == signal.SIGTERM and codes[0] not in (EXIT_CODE, -signal.SIGTERM, 0):
            raise Wrong(f"SIGTERM ended it with {codes[0]}")
        run.check_resumed(expected, run.said()[len(before) :] or f"resumes at step {expected}")
        run.check_models()


def by_damage(run: Run, rng: random.Random) -> None:
    """Kills it before an export, and damages the newest of two checkpoints."""
    which = rng.randint(1, 3)
    point = ("pdistill.model.store", "save_params", which, "before")
    command = [sys.executable, "tests/tiny_experiment.py", run.workdir, *point]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
    with run.workdir.with_suffix(".log").open("a") as log:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, stdout=log, stderr=log)
    checkpoints = run.workdir / STAGES[which - 1] / "checkpoints"
    files = [p for p in (checkpoints / "8").rglob("*") if p.is_file()]
    victim = max(files, key=lambda p: p.stat().st_size)
    data, how = victim.read_bytes(), rng.choice(("cut", "overwritten", "removed"))
    if how == "removed":
        victim.unlink()
    else:
        half = len(data) // 2
        rest = rng.randbytes(len(data) - half) if how == "overwritten" else b""
        victim.write_bytes(data[:half] + rest)
    run.faults.append({"stage": STAGES[which - 1], "how": how, "file": victim.name})
    run.check_models()
    codes = finish(start(run.workdir), HANGS)
    if codes != [0] or "checkpoints/8 is damaged; the one of step 4 is used" not in run.said():
        raise Wrong(f"the damage was not reported; exit code {codes[0]}")


def by_full_disk(run: Run, size: int) -> None:
    """Runs in a tmpfs of `size` KiB until the run has failed on it, then lets it grow."""
    run.workdir.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(run.workdir)]
    subprocess.run(options, check=True)
    [code] = finish(start(run.workdir), HANGS)
    message = next((s for s in reversed(run.said().splitlines()) if s.startswith("error: ")), "")
    message = message.replace(str(run.workdir), "<workdir>")
    run.faults.append({"kibibytes": size, "exit": code, "message": message})
    if code != 1 or not message:
        raise Wrong(f"a full disk ended it with {code}, saying {run.said()[-500:]!r}")
    run.check_models()
    subprocess.run(["mount", "-o", "remount,size=64m", str(run.workdir)], check=True)
    run.go_on()


def campaign(options: argparse.Namespace, folder: Path, done: list[dict]) -> Iterator[dict]:
    """Yields a row for each run that is not in `done` yet."""
    undisturbed: dict[int, tuple[Outcome, float]] = {}
    for kind in KINDS:
        processes = 2 if kind == "lost" else 1
        while True:
            of_kind = [row for row in done if row["kind"] == kind]
            left = getattr(options, kind) - sum(len(row["faults"]) for row in of_kind)
            if left <= 0:
                break
            if processes not in undisturbed:
                clock = time.monotonic()
                run = Run(folder / f"undisturbed{processes}", processes)
                run.go_on()
                undisturbed[processes] = Outcome.of(run.workdir), time.monotonic() - clock
            desired, seconds = undisturbed[processes]
            number = len(of_kind)
            rng = random.Random(f"{options.seed}/{kind}/{number}")
            run = Run(folder / f"{kind}{number}", processes, desired)
            row = {"kind": kind, "run": number, "faults": run.faults, "wrong": None}
            try:
                if kind == "damaged":
                    by_damage(run, rng)
                elif kind == "full":
                    by_full_disk(run, SIZES[number % len(SIZES)])
                else:
                    name = signal.SIGTERM if kind == "sigterm" else signal.SIGKILL
                    by_signal(run, name, seconds, rng, min(left, FAULTS_A_RUN))
                    run.go_on()
                run.check_end()
            except Wrong as error:
                row["wrong"] = f"{error}; see {run.workdir}.log"
            finally:
                if kind == "full":
                    subprocess.run(["umount", str(run.workdir)], check=False)
            if not row["wrong"]:
                shutil.rmtree(run.workdir)
            done.append(row)
            yield row


def table(rows: list[dict]) -> str:
    """Makes a table, with a line for each kind of fault."""
    lines = ["kind      faults  runs  wrong  slowest stop (s)"]
    for kind in KINDS:
        found = [row for row in rows if row["kind"] == kind]
        faults = [fault for row in found for fault in row["faults"]]
        wrong = sum(row["wrong"] is not None for row in found)
        stops = max((fault.get("stopped_in", 0) for fault in faults), default=0)
        lines.append(f"{kind:<9} {len(faults):>6} {len(found):>5} {wrong:>6}  {stops or '':>16}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, help="faults of this kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    about = {"machine": f"{os.cpu_count()} x {platform.machine()}", "jax": jax.__version__}
    for row in campaign(options, Path(tempfile.mkdtemp()), rows):
        print(json.dumps(row), flush=True)
        found = {**about, "rows": rows}
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")
    print(table(rows))
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
