"""What jobs of launch/slurm.sbatch must do; launch/test/slurm.sh starts the SLURM that they run on.

1. Two tasks of a node train together, with the CPUs that they ask for.
2. A minute before its time is over a job saves and is put into the queue again; it goes on and ends
   with the parameters and rows of the undisturbed one, bit for bit.
3. So does one that is preempted.
4. A job that has lost a task ends within a minute, and one that has lost a node does.
5. A job whose tasks end with an error ends with their exit code.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import Outcome, same

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60  # seconds in which a job that has lost a part of it must end
HANGS = 400  # seconds after which a job that should end by itself hangs
PACE = 1.5  # seconds of a dispatch: 100 of them outlast the two minutes up to the notice
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


class Wrong(Exception):
    """An error: a job has not done what it must."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_for(happened: Callable[[], object], limit: float, what: str) -> float:
    """Waits until `happened()`; returns the seconds that it took, raises Wrong after `limit`."""
    start = time.monotonic()
    while not happened():
        if time.monotonic() - start > limit:
            raise Wrong(f"{what}: not within {limit} s")
        time.sleep(0.2)
    return time.monotonic() - start


class Job:
    """A job of launch/slurm.sbatch that runs launch/test/paced.py.

    Args:
      place: folder that it is submitted from.
      name: name of its run directory there.
      options: those of sbatch.
      pace: seconds of a dispatch in its first start.
      flags: more of them for pdistill.
    """

    def __init__(
        self, place: Path, name: str, *options: str, pace: float = 0, flags: Sequence[str] = ()
    ):
        self.workdir = place / name
        command = [
            *("sbatch", "--parsable", *options, str(ROOT / "launch/slurm.sbatch")),
            *(f"--config={ROOT / 'launch/test/paced.py'}", f"--workdir={self.workdir}", *flags),
        ]
        environment = os.environ | {"PACE": str(pace)}
        output = subprocess.check_output(command, cwd=place, env=environment, text=True)
        self.id = output.strip()
        self._log = place / f"pdistill-{self.id}.log"
        say(f"{name}: job {self.id}, sbatch {' '.join(options)}")

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def told(self, key: str) -> str:
        """A value that SLURM shows of the job, such as its JobState."""
        return re.search(rf"\b{key}=(\S*)", ask("scontrol", "show", "job", self.id))[1]

    def over(self) -> bool:
        return self.told("JobState") not in ("PENDING", "RUNNING", "COMPLETING")

    def check(self, right: bool, what: str) -> None:
        if not right:
            raise Wrong(f"job {self.id}: {what}; its log:\n{self.log()}")

    def wait_for_training(self) -> None:
        """Waits for the teacher's first logged updates."""

        def training() -> bool:
            self.check(not self.over(), "over before it was disturbed")
            log = self.workdir / "teacher/log.jsonl"
            return log.exists() and log.stat().st_size > 0

        wait_for(training, HANGS, f"training of job {self.id}")

    def task(self, number: int) -> Path:
        """The folder in /proc of a task."""
        place = {f"SLURM_JOB_ID={self.id}", f"SLURM_PROCID={number}"}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                program, *rest = (process / "cmdline").read_text().split("\0")
                # The batch script and srun have these variables too.
                ours = "python" in program and "pdistill.main" in rest
                if ours and place < {*(process / "environ").read_text().split("\0")}:
                    return process
        raise Wrong(f"job {self.id} has no task {number}")

    def complete(self, restarts: int = 0) -> None:
        """Waits for its end, without an error."""
        seconds = wait_for(self.over, HANGS, f"the end of job {self.id}")
        found = self.told("JobState"), int(self.told("Restarts"))
        say(f"  {found[0]} after {seconds:.0f} s, {found[1]} restarts")
        self.check(found == ("COMPLETED", restarts), f"not complete after {restarts} restarts")

    def fail(self) -> str:
        """Waits for its end with an error, which must come soon; returns its exit code.

        What is left of it on a lost node is COMPLETING, until SLURM gives that up.
        """
        seconds = wait_for(
            lambda: self.told("JobState") not in ("PENDING", "RUNNING"),
            *(LIMIT, f"the end of job {self.id}"),
        )
        state, code = self.told("JobState"), self.told("ExitCode")
        say(f"  {state} with {code} after {seconds:.0f} s")
        self.check(state in ("FAILED", "COMPLETING") and code != "0:0", "it has not failed")
        return code

    def check_resumed(self, desired: Outcome) -> None:
        """Checks that it has saved, gone on from there, and ended as the undisturbed one."""
        saved = re.search(r"stopped by SIGTERM: teacher is saved at step (\d+)", self.log())
        self.check(saved is not None, "it has not saved")
        self.check(f"resumes at step {saved[1]}\n" in self.log(), "it has not gone on from there")
        found = Outcome.of(self.workdir)
        self.check(found.rows == desired.rows, "other rows")
        self.check(all(map(same, found.params, desired.params)), "other parameters")
        say(f"  {saved[0]}, and it has gone on from there")
        say(f"  its {len(found.rows)} rows and its parameters are those of the undisturbed job")


def undisturbed(place: Path) -> Outcome:
    job = Job(place, "undisturbed", *ONE_NODE, "--cpus-per-task=2")
    job.wait_for_training()
    step = ask("scontrol", "show", "step", f"{job.id}.0")
    job.check("CPUs=4 Tasks=2" in step, f"two tasks do not have two CPUs each:\n{step}")
    job.complete()
    saved = max(job.workdir.glob("teacher/checkpoints/*/state/_sharding"))
    meshes = {tuple(json.loads(text)["shape"]) for text in json.loads(saved.read_text()).values()}
    job.check(meshes == {(2, 1)}, f"it has trained on meshes {meshes}")
    say("  two tasks of one device each have trained on a mesh of 2 x 1")
    return Outcome.of(job.workdir)


def out_of_time(place: Path, desired: Outcome) -> None:
    """The notice is that which slurm.sbatch asks for, before a limit of three minutes."""
    job = Job(place, "out_of_time", *ONE_NODE, "--time=3", pace=PACE)
    job.complete(restarts=1)
    job.check_resumed(desired)


def preempted(place: Path, desired: Outcome) -> None:
    """As PreemptMode=REQUEUE does: SIGTERM, and SIGKILL half a minute later."""
    job = Job(place, "preempted", *TWO_NODES, pace=PACE)
    job.wait_for_training()
    ask("scontrol", "requeue", job.id)
    job.complete(restarts=1)
    job.check_resumed(desired)


def lost_task(place: Path) -> None:
    job = Job(place, "lost_task", *ONE_NODE, pace=PACE)
    job.wait_for_training()
    os.kill(int(job.task(1).name), signal.SIGKILL)
    say("  its second task is killed")
    job.fail()


def lost_node(place: Path, folder: Path) -> None:
    """The node with the second task is gone, with SLURM's daemon and supervisor of the task."""
    job = Job(place, "lost_node", *TWO_NODES, pace=PACE)
    job.wait_for_training()
    task = job.task(1)
    node = re.search(r"SLURMD_NODENAME=([^\0]*)", (task / "environ").read_text())[1]
    supervisor = re.search(r"PPid:\s*(\d+)", (task / "status").read_text())[1]
    for pid in ((folder / f"{node}.pid").read_text(), supervisor, task.name):
        os.kill(int(pid), signal.SIGKILL)
    say(f"  its second node, {node}, is killed")
    job.fail()


def wrong_flag(place: Path) -> None:
    job = Job(place, "wrong_flag", *ONE_NODE, flags=["--config.seeds=1"])
    job.check(job.fail() == "1:0", "the exit code is not that of its tasks")


def main() -> None:
    folder = Path(sys.argv[1])
    place = folder / "checkout"
    activate = place / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    try:
        desired = undisturbed(place)
        out_of_time(place, desired)
        preempted(place, desired)
        wrong_flag(place)
        lost_task(place)
        lost_node(place, folder)
    except Wrong as error:
        sys.exit(f"wrong: {error}")
    say("all is well")


if __name__ == "__main__":
    main()
