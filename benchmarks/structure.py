"""Counts what the design's habits limit: long files and functions, classes of methods, docstrings.

    python -m benchmarks.structure

Prints a line for each directory of pdistill/, then each place over a limit. A docstring is a riddle
if its first word is one of FORBIDDEN; `sentences` counts later sentences and entries of Args and
Attributes that begin so too.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pdistill"
FILE_LINES = 400
FUNCTION_LINES = 60
# In methods/; states and parts, dataclasses and NamedTuples included. 32 are of the first twelve
# methods, 5 of flow maps, and 2 of codecs.
METHOD_CLASSES = 39
FORBIDDEN = ("Of", "That", "Those", "What", "Which", "How", "Where")

_SENTENCE = re.compile(rf"(?:^|[.?!]\s+|\n\s*\n\s*)((?:{'|'.join(FORBIDDEN)})\b[^.\n]*)")
_ENTRY = re.compile(rf"(?:^\s\s+|\. )([\w, ]+: (?i:{'|'.join(FORBIDDEN)})\b[^.\n]*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in a file of the package.

    Attributes:
      file: path relative to the package. line: its line, from 1. text: its name or words.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"pdistill/{self.file}:{self.line}: {self.text}"


@dataclasses.dataclass
class Findings:
    """Everything that was counted in some files.

    Attributes:
      files: number of files. lines: number of lines.
      long_files, long_functions: places over FILE_LINES and FUNCTION_LINES.
      classes: all classes, nested ones included.
      riddles: docstrings that begin with one of FORBIDDEN.
      sentences: later sentences and entries that begin so.
    """

    files: int = 0
    lines: int = 0
    long_files: list[Place] = dataclasses.field(default_factory=list)
    long_functions: list[Place] = dataclasses.field(default_factory=list)
    classes: list[Place] = dataclasses.field(default_factory=list)
    riddles: list[Place] = dataclasses.field(default_factory=list)
    sentences: list[Place] = dataclasses.field(default_factory=list)


def inspect(paths: Iterator[Path], root: Path = PACKAGE) -> Findings:
    """Counts in the files `paths`, below the package `root`."""
    found = Findings()
    for path in paths:
        file, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        found.files += 1
        found.lines += lines
        if lines > FILE_LINES:
            found.long_files.append(Place(file, 1, f"{lines} lines"))
        for node in ast.walk(ast.parse(text)):
            _inspect_node(node, file, found)
    return found


def _inspect_node(node: ast.AST, file: str, found: Findings) -> None:
    """Adds what one node has to the findings."""
    if isinstance(node, ast.ClassDef):
        found.classes.append(Place(file, node.lineno, node.name))
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if lines > FUNCTION_LINES:
            place = Place(file, node.lineno, f"{node.name}, {lines} lines")
            found.long_functions.append(place)
    elif not isinstance(node, ast.Module):
        return
    docstring = ast.get_docstring(node)
    if not docstring:
        return
    line = node.body[0].lineno
    for match in (*_SENTENCE.finditer(docstring), *_ENTRY.finditer(docstring)):
        place = Place(file, line + docstring[: match.start(1)].count("\n"), match[1])
        (found.sentences if match.start(1) else found.riddles).append(place)


def files_of(directory: str = "", root: Path = PACKAGE) -> Iterator[Path]:
    """Yields the Python files in a directory of the package and all below it."""
    yield from sorted((root / directory).rglob("*.py"))


def table(root: Path = PACKAGE) -> str:
    """Makes a table with a line for each directory of the package, and one for all."""
    names = ("files", "lines", "long_files", "long_functions", "classes", "riddles", "sentences")
    directories = sorted(path.parent.name for path in root.glob("*/__init__.py"))
    parts = {name: inspect(files_of(name, root), root) for name in directories}
    parts = {"(root)": inspect(sorted(root.glob("*.py")), root)} | parts
    parts["all"] = inspect(files_of("", root), root)
    width = max(map(len, parts))
    lines = [" ".join([" " * width, *(f"{name:>14}" for name in names)])]
    for name, found in parts.items():
        counts = [getattr(found, key) for key in names]
        counts = [count if isinstance(count, int) else len(count) for count in counts]
        lines.append(" ".join([f"{name:{width}}", *(f"{count:>14}" for count in counts)]))
    return "\n".join(lines)


def main() -> None:
    print(table())
    found, methods = inspect(files_of()), inspect(files_of("methods"))
    for title, places in (
        (f"files over {FILE_LINES} lines", found.long_files),
        (f"functions over {FUNCTION_LINES} lines", found.long_functions),
        (f"classes in methods, at most {METHOD_CLASSES}", methods.classes),
        (f"docstrings that begin with {', '.join(FORBIDDEN)}", found.riddles),
        ("later sentences and entries that begin so", found.sentences),
    ):
        print(f"\n{len(places)} {title}")
        print("\n".join(f"  {place}" for place in places))


if __name__ == "__main__":
    main()
