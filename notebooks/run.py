"""Runs notebooks from a fresh kernel, and keeps the pictures that they draw:

    python notebooks/run.py notebooks/quickstart.ipynb ...

Texts and numbers are not kept: they differ from machine to machine.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

CHECKOUT = Path(__file__).resolve().parent.parent


def execute(
    path: Path,
    folder: Path,
    change: Callable[[str], str] = str,
    environment: Mapping[str, str] = os.environ,
) -> NotebookNode:
    """Executes a notebook whose kernel starts in `folder`.

    Args:
      change: what to do to the source of each cell of code. environment: the kernel's variables;
        this checkout is put before its PYTHONPATH.

    Returns:
      The notebook with all outputs.

    Raises:
      CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.source = change(cell.source)
    paths = [str(CHECKOUT), *filter(None, [environment.get("PYTHONPATH")])]
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**environment, "PYTHONPATH": os.pathsep.join(paths)})
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: NotebookNode) -> list[str]:
    """The PNGs that a notebook's outputs show, in base 64."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [picture for picture in found if picture]


def keep_pictures(notebook: NotebookNode) -> None:
    """Drops all that a run adds to a notebook but pictures."""
    for cell in code_cells(notebook):
        kept = pictures(nbformat.v4.new_notebook(cells=[cell]))
        cell.outputs = [
            nbformat.v4.new_output("display_data", {"image/png": picture}) for picture in kept
        ]
        cell.execution_count = None
        cell.metadata.pop("execution", None)  # when it ran
    notebook.metadata.language_info = {"name": "python"}  # without this machine's version


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = execute(path, path.parent)
        keep_pictures(notebook)
        path.write_text(nbformat.writes(notebook) + "\n")
        print(f"{path}: {len(pictures(notebook))} pictures, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
