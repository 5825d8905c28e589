"""Counts the files and classes on the way from a command to the line that does the work.

    python -m benchmarks.walk

Runs two updates of a very small experiment and draws one image of what it made. Each way is the
call stack, in this package, at the moment when the loss of progressive distillation is computed,
and when a model's network is called in `Model.sample`: whoever reads from the one to the other
opens these files, and meets these classes.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pdistill
from pdistill.__main__ import main as main_of_pdistill

PACKAGE = Path(pdistill.__file__).parent
LOOP = {"num_updates": 2, "batch_size": 8, "substeps": 1, "log_every": 1, "save_every": 2}


class Walk(NamedTuple):
    """Files of the package, and classes whose methods are called, on the way to a function."""

    files: tuple[str, ...]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        files = "\n".join(f"  {file}" for file in self.files)
        return (
            f"{len(self.files)} files\n{files}\n{len(self.classes)} classes: "
            f"{', '.join(self.classes)}"
        )


def here() -> Walk:
    """The walk to the caller's caller, outermost first."""
    files: dict[str, None] = {}
    classes: dict[str, None] = {}
    frame, stack = sys._getframe(2), []
    while frame:
        stack.append(frame)
        frame = frame.f_back
    for frame in reversed(stack):
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PACKAGE):
            continue
        owner = frame.f_locals.get("self")
        files[f"{path.relative_to(PACKAGE)}:{frame.f_code.co_firstlineno}"] = None
        if owner is not None and type(owner).__module__.startswith("pdistill."):
            classes[type(owner).__name__] = None
    return Walk(_first_of_each_file(files), tuple(classes))


def _first_of_each_file(places: dict[str, None]) -> tuple[str, ...]:
    """The first place in each file, such as "cli/train.py:50"."""
    found: dict[str, str] = {}
    for place in places:
        found.setdefault(place.partition(":")[0], place)
    return tuple(found.values())


@contextmanager
def seen_at(owner: Any, name: str) -> Iterator[list[Walk]]:
    """Collects the walks to each call of `owner.name`."""
    function: Callable = getattr(owner, name)
    walks: list[Walk] = []

    def seen(*args: Any, **kwargs: Any) -> Any:
        walks.append(here())
        return function(*args, **kwargs)

    setattr(owner, name, seen)
    try:
        yield walks
    finally:
        setattr(owner, name, function)


def small() -> Any:
    """digits_pd with a very small network and two updates of each run."""
    from pdistill.configs import digits_pd

    config = digits_pd.get_config()
    config.model.network.arguments.update(features=16, depth=1, heads=2)
    teacher, progressive = config.stages
    for stage in (teacher, progressive):
        stage["loop"] = LOOP
        stage["optimizer"]["warmup"] = 0
    teacher["measured_at"] = (2,)
    progressive.update(start_steps=2, long_rounds=0)
    config.evaluation = {"num_samples": 16, "metrics": ("fd_pixels",), "references": ("train",)}
    return config


def walks(workdir: Path) -> dict[str, Walk]:
    """The walks from `pdistill train` to the loss of progressive distillation, and of a sample."""
    import jax

    from pdistill import diffusion
    from pdistill.methods.parts import regression

    path = workdir / "small.py"
    path.write_text("from benchmarks.walk import small as get_config\n")
    sys.argv[1:] = ["train", f"--config={path}", f"--workdir={workdir / 'run'}"]
    with seen_at(regression, "denoising_loss") as losses:
        try:
            main_of_pdistill()
        except SystemExit as end:
            if end.code:
                raise
    model = pdistill.load(workdir / "run/progressive/1")
    with seen_at(diffusion, "x_from_output") as calls:
        model.sample(jax.random.key(0), num=1)
    ours = [walk for walk in losses if any("progressive" in file for file in walk.files)]
    return {"progressive distillation": ours[0], "model.sample": calls[0]}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name, walk in walks(Path(directory)).items():
            print(f"\n{name}: {walk}")


if __name__ == "__main__":
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as the program has it
    main()
