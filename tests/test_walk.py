"""The way to the algorithm is short, see `benchmarks.walk`."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # it traces every call of a run: for changes of the structure


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """The walks, of a program of their own, since absl reads its flags once."""
    code = (
        "import json, pathlib, sys; from benchmarks.walk import walks;"
        "found = walks(pathlib.Path(sys.argv.pop()));"
        "print(json.dumps({name: walk._asdict() for name, walk in found.items()}))"
    )
    workdir = tmp_path_factory.mktemp("walk")
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(
        [sys.executable, "-c", code, workdir], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    return json.loads(done.stdout.splitlines()[-1])


def test_from_the_command_to_the_loss(walks):
    walk = walks["progressive distillation"]
    assert walk["files"][0].startswith("__main__.py")
    assert any(file.startswith("methods/progressive.py") for file in walk["files"])
    assert len(walk["files"]) + 1 <= 10, walk["files"]  # and the loss's own file
    assert len(walk["classes"]) <= 10, walk["classes"]


def test_from_a_model_to_its_network(walks):
    walk = walks["model.sample"]
    assert walk["files"][0].startswith("model/model.py")
    assert walk["files"][-1].startswith("networks/network.py")
    assert len(walk["files"]) <= 5, walk["files"]
