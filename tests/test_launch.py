"""The launchers for SLURM, JobSet and Cloud TPU, where those are not at hand."""

import copy
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "tests/fixtures/jobset/v1alpha2.json"


def test_the_docs_have_the_command_of_the_slurm_launcher():
    """With the CPUs of a process, of which there is one where they are not asked for."""
    _, command = (ROOT / "launch/slurm.sbatch").read_text().split("#   sbatch ", 1)
    command, _ = command.split("\n#\n", 1)
    command = " ".join(command.replace("\\\n#", " ").split())
    assert "--cpus-per-task=8" in command
    assert f"`sbatch {command}`" in (ROOT / "docs/scaling.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("slurmctld", path="/usr/sbin:/sbin"), reason="needs SLURM")
def test_slurm():
    """Jobs stop with notice, go on, and end when a part is lost: launch/test/slurm.py."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XLA_FLAGS": "",  # one device a task
    }
    subprocess.run(["bash", ROOT / "launch/test/slurm.sh"], env=environment, check=True)


PROCESS = """
import os, sys, time
from pathlib import Path
from pdistill.runtime.interruption import Interrupted, ProgramSignals
try:
    with ProgramSignals() as stop, stop.deferred():
        started = Path(os.environ["STARTED"], str(os.getpid()))
        started.touch()
        end = time.monotonic() + 60
        while not stop.requested and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.5)
        started.rename(started.with_suffix(".saved"))
except Interrupted as interruption:
    stop.end("")
"""


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("nohup", [False, True])
def test_local_processes_are_saved_when_their_terminal_is_closed(tmp_path, nohup):
    """Also where a shell tells of it besides; under nohup they go on until they are stopped."""
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec \"{sys.executable}\" -c '{PROCESS}'\n")
    (tmp_path / "python").chmod(0o755)
    started = tmp_path / "started"
    started.mkdir()
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STARTED": str(started),
    }
    reader, terminal = os.openpty()
    command = ["setsid", "--ctty", *["nohup"] * nohup, ROOT / "launch/local_processes.sh", "2", "-"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal
    ) as launcher:
        os.close(terminal)
        until(lambda: len(list(started.iterdir())) == 2)
        os.close(reader)
        time.sleep(0.1)
        launcher.send_signal(signal.SIGHUP)
        if nohup:
            time.sleep(1)
            assert not list(started.glob("*.saved"))
            launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75
    assert len(list(started.glob("*.saved"))) == 2


def until(condition, seconds=60):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def closed(schema):
    """The schema, in which objects have no other fields than those that it names."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {k: closed(v) for k, v in schema["properties"].items()}
        schema["additionalProperties"] = False
    if "items" in schema:
        schema["items"] = closed(schema["items"])
    return schema


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(closed(json.loads(SCHEMA.read_text())))


def test_jobset_is_one_of_its_schema(jobset, validator):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert not [error.message for error in validator.iter_errors(jobset)]


def test_names_in_the_jobset_are_those_of_its_parts(jobset):
    """Which no schema knows."""
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job["parallelism"] == job["completions"]
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    [data] = container["env"]
    mounted = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"])
    assert (data["name"], data["value"].startswith(mounted)) == ("TFDS_DATA_DIR", True)
    name = jobset["metadata"]["name"]
    first = f"{name}-{workers['name']}-0-0.{name}:"
    assert f"--coordinator={first}" in (ROOT / "launch/jobset.yaml").read_text()


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
RULE = ("spec", "failurePolicy", "rules", 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "failurePolicy", "maxRestart"), 3),
        ((*JOB, "backOffLimit"), 0),
        ((*JOB, "template", "spec", "containers", 0, "volumeMount"), []),
        ((*RULE, "action"), "RestartJobSetAndIgnoreRestarts"),
        ((*JOB, "completions"), "4"),
    ],
)
def test_faults_of_a_jobset_are_refused(jobset, validator, place, value):
    """Misspelt fields at any depth, unknown values and wrong types."""
    changed = found = copy.deepcopy(jobset)
    for key in place[:-1]:
        found = found[key]
    found[place[-1]] = value
    assert not validator.is_valid(changed)


def dry(*arguments, **variables):
    """The commands that launch/tpu_pod.sh prints instead of running them."""
    output = subprocess.run(
        [ROOT / "launch/tpu_pod.sh", *arguments],
        env=os.environ | {"TPU": "pod", "ZONE": "us-central2-b", "DRY_RUN": "1"} | variables,
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    words = shlex.split(output.replace("\ngcloud ", " ; gcloud "))
    commands = [[]]
    for word in words:
        if word == ";":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
ZONE = "--zone=us-central2-b"


@pytest.mark.parametrize(
    ("arguments", "action", "words"),
    [
        (
            ("create", "v4-32", "tpu-ubuntu2204-base"),
            "create",
            ["pod", "--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base"],
        ),
        (
            ("collect", "/runs/a", "runs/"),
            "scp",
            ["--recurse", "pod:/runs/a", "runs/", "--worker=0"],
        ),
        (("delete",), "delete", ["pod"]),
    ],
)
def test_tpu_commands(arguments, action, words):
    assert dry(*arguments) == [[*TPU_VM, action, ZONE, *words]]


STUB = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0")" "$@" >>"$LOG"
echo "$TFDS_DATA_DIR" >"$LOG.data"
case "$*" in *pdistill.main*) exit "$(sed -n "$(grep -c pdistill.main "$LOG")p" "$CODES")" ;; esac
"""


@pytest.mark.parametrize(
    ("codes", "desired", "data"),
    [((75, 75, 0), 0, "/shared/my own's data"), ((75, 3, 0), 3, "")],
)
def test_tpu_workers_run_again_what_a_signal_has_stopped(tmp_path, codes, desired, data):
    """And nothing else; what the script sends them is run here, with programs that only log."""
    arguments = ("--config=a.py", "--workdir=/runs/my own's")
    archive, copied, [*ssh, command] = dry("run", *arguments, TFDS_DATA_DIR=data)
    assert archive[:2] == ["git", "archive"]
    tarball = archive[archive.index("-o") + 1]
    assert copied == [*TPU_VM, "scp", ZONE, tarball, "pod:pdistill.tar.gz", "--worker=all"]
    assert ssh == [*TPU_VM, "ssh", ZONE, "pod", "--worker=all"]
    for name in ("python", "python3", "pip", "tar"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    activate = tmp_path / "pdistill/.venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    (tmp_path / "codes").write_text("\n".join(map(str, codes)))
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "CODES": str(tmp_path / "codes"),
    }
    program = command.removeprefix("--command=")
    environment.pop("TFDS_DATA_DIR", None)
    command = ["bash", "-c", program]
    with (tmp_path / "pdistill.lock").open("a") as lock:  # as another run, which the laptop lost
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = subprocess.run(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
    assert (refused.returncode, b"goes on here already" in refused.stderr) == (1, True)
    assert not (tmp_path / "log").exists()
    ended = subprocess.run(command, env=environment, cwd=tmp_path)
    assert ended.returncode == desired
    assert (tmp_path / "log.data").read_text() == f"{data}\n"
    runs = (tmp_path / "log").read_text().split("python\n-m\npdistill.main\n")[1:]
    flags = ["--distributed", "--join_timeout=300", "--config=a.py", "--workdir=/runs/my own's"]
    assert [run.splitlines() for run in runs] == [flags] * (codes.index(desired) + 1)
