"""Makes small wrong changes of the package, one at a time, and counts those that its tests catch.

    python -m benchmarks.mutation SET [--again] [--jobs=N]

cosmic-ray makes the changes (extra `mutation`, beside `test`). `mutation.toml` has the sets, the
tests of each module, and the changes that change nothing. Each is tested in a copy of the package.
Results go to `results/mutation.jsonl`, so that a run that was stopped goes on where it was. A
result counts until the function around the change, or the line if it is in none, is another one;
--again tests those that survived anew.
"""

import argparse
import ast
import collections
import dataclasses
import difflib
import fnmatch
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_suffix(".toml")
RESULTS = Path(__file__).parent / "results" / "mutation.jsonl"
PYTEST = ("-o", "addopts=", "-m", "not slow", "-x", "-q", "--tb=no", "-p", "no:cacheprovider")
LONGEST_LOOK = 10  # seconds from one look at the trials to the next
# Loaded once, before a process is forked for each mutant.
LIBRARIES = ("flax.linen", "optax", "chex", "scipy.stats", "scipy.integrate", "pytest")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong change of a module.

    Attributes:
      module: path below pdistill/. operator: cosmic-ray's name. code: the changed module.
      line: line of the change, from 1. before, after: the lines that differ.
    """

    module: str
    operator: str
    code: str
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """Of the module's name and the changed function, or the line if it is in none."""
        return digest(self.module, around(self.code, self.line))

    def __str__(self) -> str:
        return f"pdistill/{self.module}:{self.line}: {self.before}  ->  {self.after}"


def digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def around(code: str, line: int) -> str:
    """The function that a line is in, without its docstring; else the line; after its classes."""
    names, nodes = [], ast.parse(code).body
    while node := next((n for n in nodes if begin(n) <= line <= n.end_lineno), None):
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
            return "\n".join([*names, ast.unparse(node)])
        names.append(getattr(node, "name", ""))
        nodes = node.body if isinstance(node, ast.ClassDef) else []
    return "\n".join([*names, code.splitlines()[line - 1].strip()])


def begin(node: ast.stmt) -> int:
    """First line of a statement with its decorators."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def select(config: dict[str, Any], name: str) -> Iterator[Mutant]:
    """The mutants of a set, in a random order by its seed; equal ones once.

    The order is by the text of the changed lines, so that changes of the package elsewhere leave
    a set as it is but for its last few.
    """
    chosen, taken = config["sets"][name], set()
    order = places(config, chosen["modules"], config["without"] + chosen.get("except", []))
    for place in sorted(order, key=lambda place: digest(str(chosen["seed"]), str(place))):
        if len(taken) == chosen.get("count"):
            return
        mutant = make(place)
        if mutant and mutant.key not in taken:
            taken.add(mutant.key)
            yield mutant


@dataclasses.dataclass(frozen=True)
class Place:
    """A change that an operator can make.

    Attributes:
      module: path below pdistill/. operator: cosmic-ray's name. line: text of the line.
      repeat: number among those of the operator in equal lines. number: among all of the operator.
    """

    module: str
    operator: str
    line: str
    repeat: int
    number: int

    def __str__(self) -> str:
        return f"{self.module} {self.operator} {self.repeat} {self.line}"


def places(config: dict[str, Any], patterns: list[str], without: list[str]) -> list[Place]:
    """The changes that operators can make in the modules."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator

    found = []
    for path in sorted((ROOT / "pdistill").rglob("*.py")):
        module = str(path.relative_to(ROOT / "pdistill"))
        if not fits(module, patterns) or fits(module, without):
            continue
        nodes = list(ast_nodes(get_ast_from_path(path)))
        lines = path.read_text().splitlines()
        for name in config["operators"]:
            operator, repeats = get_operator(f"core/{name}")(), collections.Counter()
            positions = (p for node in nodes for p in operator.mutation_positions(node))
            for number, ((row, _), _) in enumerate(positions):
                line = lines[row - 1].strip()
                found.append(Place(module, name, line, repeats[line], number))
                repeats[line] += 1
    return found


def fits(module: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(module, pattern) for pattern in patterns)


def make(place: Place) -> Mutant | None:
    """One mutant; None if it does the same by `meaning`, or is no Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / "pdistill" / place.module).read_text()
    try:
        code = mutate_code(source, get_operator(f"core/{place.operator}")(), place.number)
        if meaning(code) == meaning(source):
            return None
    except (SyntaxError, AttributeError):  # the latter of cosmic-ray, for an exception module.Name
        return None
    a, b = source.splitlines(), code.splitlines()
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    _, start, end, first, last = next(c for c in matcher.get_opcodes() if c[0] != "equal")
    texts = (" ".join(map(str.strip, lines)) for lines in (a[start:end], b[first:last]))
    return Mutant(place.module, place.operator, code, start + 1, *texts)


def meaning(code: str) -> str:
    """What a module does: its syntax tree without what is for type checkers and callers' manners.

    These are annotations, functions of "..." alone, and which arguments need names.
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            node.body = [part for part in node.body if not is_stub(part)]
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.arguments):
            node.args = node.posonlyargs + node.args + node.kwonlyargs
            node.defaults = node.defaults + [d for d in node.kw_defaults if d]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def is_stub(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef) or not isinstance(node.body[-1], ast.Expr):
        return False
    value = node.body[-1].value
    return isinstance(value, ast.Constant) and value.value is ...


def tests_of(config: dict[str, Any], module: str) -> tuple[str, ...]:
    """Test files of a module: those of its name, or else of the first pattern that fits it."""
    for pattern in sorted(config["tests"], key=lambda pattern: "*" in pattern):
        if fnmatch.fnmatch(module, pattern):
            return tuple(f"tests/{file}" for file in config["tests"][pattern])
    own = f"tests/{Path(module).parent}/test_{Path(module).name}"
    if (ROOT / own).exists():
        return (own,)
    raise SystemExit(f"mutation.toml says no tests of {module}; add them to [tests]")


class Haste:
    """A plugin of pytest that puts tests in order; it writes down what passed, and in how long."""

    def __init__(self, rank: Callable[[str], Any], path: Path):
        self._rank, self._path = rank, path

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self._rank(name_of(item)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            with self._path.open("a") as file:
                file.write(f"{name_of(report)} {report.duration}\n")


class Reach:
    """A plugin of pytest that writes down the lines of the package that each test runs."""

    def __init__(self, path: Path):
        import coverage

        self._coverage, self._path = coverage.Coverage(data_file=None, source=["pdistill"]), path
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid.split()[0])

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data, lines = self._coverage.get_data(), {}
        for file in data.measured_files():
            module = str(Path(file).relative_to(Path.cwd() / "pdistill"))
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    lines.setdefault(module, {}).setdefault(test, []).append(line)
        self._path.write_text(json.dumps(lines))


def name_of(test: Any) -> str:
    return test.nodeid.split()[0]


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a mutant's tests: those first that run its line, and of these the quick ones.

    Attributes:
      line: of the mutant. lines: that each test runs of its module, as far as one file's tests
        run in one process: what is traced once counts for the first. seconds: of each test.
      known: tests that caught other mutants of the module.
    """

    line: int
    lines: dict[str, list[int]]
    seconds: dict[str, float]
    known: frozenset[str]

    def __call__(self, test: str) -> tuple[bool, float]:
        weight = 0.25 if test in self.known else 1.0
        missed = self.line not in self.lines.get(test, ())
        return missed, weight * self.seconds.get(test, math.inf)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Tests of a mutant, in a process of their own.

    Attributes:
      child: the process. directory: the copy that it has. whole: its module without the change.
      since: the workshop's `awake` when it began.
    """

    mutant: Mutant
    files: tuple[str, ...]
    child: int
    directory: Path
    whole: str
    since: float


class Workshop:
    """Copies of the package and its tests; in each one module at a time is changed.

    Attributes:
      running: trials that are not over. passed: tests that passed, and their files, unchanged.
      awake: seconds since it was made, without those in which this program was stopped.
    """

    def __init__(self, directory: Path, copies: int):
        self._free = [directory / str(i) for i in range(copies)]
        self._lines: dict[str, dict[str, list[int]]] = {}
        self._seconds: dict[str, float] = {}
        self._surveyed: set[str] = set()
        self.awake, self._looked = 0.0, time.monotonic()
        self.running: list[Trial] = []
        self.passed: set[str] = set()
        for copy in self._free:
            for name in ("pdistill", "tests"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            shutil.copy(ROOT / "pyproject.toml", copy)
        sys.dont_write_bytecode = True  # a change within a second has the same time stamp
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # much is the same
        self._enter(self._free[0])
        for name in ("conftest", *LIBRARIES):  # conftest sets what jax reads from the environment
            __import__(name)

    @property
    def full(self) -> bool:
        return not self._free

    def survey(self, files: tuple[str, ...]) -> None:
        """Learns which lines the tests of files run and how long they take; not if it is full.

        They are run as they are, each file once and never again: it only puts tests in order.
        """
        for file in files:
            if file in self._surveyed:
                continue
            if not kept(file).exists():
                print(f"which lines do the tests of {file} run?", flush=True)
                directory = self._free[-1]
                os.waitpid(self._fork((file,), None, directory, reach=True), 0)
                found = {"seconds": read_passed(directory)}
                found["lines"] = json.loads((directory / "reached").read_text())
                (survey := directory / "survey").write_text(json.dumps(found))
                shutil.move(survey, kept(file))
            found = json.loads(kept(file).read_text())
            self._seconds |= found["seconds"]
            for module, tests in found["lines"].items():
                self._lines.setdefault(module, {}).update(tests)
            self._surveyed.add(file)

    def start(self, mutant: Mutant, files: tuple[str, ...], known: frozenset[str]) -> None:
        """Begins a trial; not if it is full."""
        directory = self._free.pop()
        path = directory / "pdistill" / mutant.module
        whole = path.read_text()
        path.write_text(mutant.code)
        order = Order(mutant.line, self._lines.get(mutant.module, {}), self._seconds, known)
        child = self._fork(files, order, directory)
        self._look()
        self.running.append(Trial(mutant, files, child, directory, whole, self.awake))

    def check(self, tests: tuple[str, ...]) -> None:
        """Runs tests of the package as it is; not if it is full.

        Raises:
          SystemExit: they fail.
        """
        directory = self._free[-1]
        _, status = os.waitpid(self._fork(tests, None, directory), 0)
        if status:
            output = (directory / "output").read_text()
            raise SystemExit(f"{' '.join(tests)} fails without a mutant:\n{output}")
        self.passed |= {*tests, *read_passed(directory)}

    def finish(self, timeout: float) -> Iterator[tuple[Trial, str, str]]:
        """Trials that are over, each with "caught" or "survived" and, if caught, the test.

        A trial that is stopped together with this program, as by SIGSTOP, is not over time.
        """
        self._look()
        for trial in list(self.running):
            done, status = os.waitpid(trial.child, os.WNOHANG)
            if not done and self.awake - trial.since < timeout:
                continue
            if not done:
                os.killpg(trial.child, signal.SIGKILL)
                os.waitpid(trial.child, 0)
            (trial.directory / "pdistill" / trial.mutant.module).write_text(trial.whole)
            self.running.remove(trial)
            self._free.append(trial.directory)
            yield trial, *(self._result(trial, status) if done else ("caught", "timeout"))

    def _look(self) -> None:
        """Adds the time since the last look to `awake`, of a stop at most LONGEST_LOOK of it."""
        now = time.monotonic()
        self.awake += min(now - self._looked, LONGEST_LOOK)
        self._looked = now

    def _result(self, trial: Trial, status: int) -> tuple[str, str]:
        code, text = os.waitstatus_to_exitcode(status), (trial.directory / "output").read_text()
        if not code:
            return "survived", ""
        if code in (3, 4, 5):  # an error of pytest, wrong options, no tests
            raise SystemExit(f"pytest failed:\n{text}")
        by = [line.split()[1] for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "caught", by[0] if by else f"exit code {code}"

    def _enter(self, directory: Path) -> None:
        sys.path[:0] = [str(directory), str(directory / "tests")]
        os.chdir(directory)

    def _fork(
        self, files: tuple[str, ...], order: Order | None, directory: Path, reach: bool = False
    ) -> int:
        """Starts a process that runs tests in a copy."""
        (passed := directory / "passed").write_text("")
        if child := os.fork():
            return child
        os.setpgid(0, 0)
        output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        self._enter(directory)
        for name in list(sys.modules):
            if name.partition(".")[0] in ("pdistill", "conftest"):
                del sys.modules[name]
        import pytest

        plugins = [Haste(order or (lambda test: 0), passed)]
        code = pytest.main(
            [*PYTEST, *files], plugins + ([Reach(directory / "reached")] if reach else [])
        )
        sys.stdout.flush()
        os._exit(int(code))


def kept(file: str) -> Path:
    """Where the survey of a test file is kept."""
    folder = Path.home() / ".cache" / "pdistill-mutation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / file.replace("/", "-").replace(".py", ".json")


def read_passed(directory: Path) -> dict[str, float]:
    """Seconds of the tests that passed in a copy."""
    rows = map(str.split, (directory / "passed").read_text().splitlines())
    return {test: float(seconds) for test, seconds in rows}


def read_results() -> dict[str, dict[str, Any]]:
    """Results by the mutants' keys; the last of each."""
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text().splitlines())
    return {row["key"]: row for row in rows}


def reason_of(config: dict[str, Any], mutant: Mutant) -> str:
    """Why a mutant is no wrong change; "" if it is one."""
    for known in config.get("equivalent", ()):
        if all(getattr(mutant, name) == known[name] for name in ("module", "before", "after")):
            return known["reason"]
    return ""


def report(config: dict[str, Any], mutants: list[Mutant]) -> None:
    """Prints the survivors of a set, and its counts."""
    results = read_results()
    equivalent = {mutant.key for mutant in mutants if reason_of(config, mutant)}
    tested = [m for m in mutants if m.key in results and m.key not in equivalent]
    survivors = [m for m in tested if results[m.key]["result"] == "survived"]
    for mutant in sorted(survivors, key=str):
        print(f"survived {mutant}")
    caught = len(tested) - len(survivors)
    print(
        f"{len(mutants)} mutants, {len(equivalent)} of them equivalent; {len(tested)} tested, "
        f"{caught} caught ({caught / max(len(tested), 1):.1%})"
    )


def main() -> None:
    config = tomllib.loads(CONFIG.read_text())
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("set", choices=config["sets"], help="a set of mutation.toml")
    parser.add_argument("--again", action="store_true", help="test survivors anew")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--report", action="store_true", help="test nothing")
    options = parser.parse_args()
    if not options.report:
        known = ("caught",) if options.again else ("caught", "survived")
        done = {key for key, row in read_results().items() if row["result"] in known}
        ahead = (m for m in select(config, options.set) if m.key not in done)
        with tempfile.TemporaryDirectory() as directory:
            workshop = Workshop(Path(directory), options.jobs)
            test_all(config, (m for m in ahead if not reason_of(config, m)), workshop)
    report(config, list(select(config, options.set)))


def test_all(config: dict[str, Any], mutants: Iterator[Mutant], workshop: Workshop) -> None:
    """Tests mutants and writes down results; what catches one must pass without it."""
    results, ahead = read_results(), next(mutants, None)
    while ahead or workshop.running:
        if ahead and not workshop.full:
            files, place = tests_of(config, ahead.module), f"pdistill/{ahead.module}:"
            workshop.survey(files)
            rows = (row for row in results.values() if row["mutant"].startswith(place))
            workshop.start(ahead, files, frozenset(row["by"] for row in rows))
            ahead = next(mutants, None)
        for trial, found, by in workshop.finish(config["timeout"]):
            tests = (by.partition("[")[0],) if by.startswith("tests/") else trial.files
            if found == "caught" and not workshop.passed.intersection({by, *tests}):
                workshop.check(tests)
            row = {"key": trial.mutant.key, "result": found, "by": by, "mutant": str(trial.mutant)}
            seconds = round(workshop.awake - trial.since, 1)
            row |= {"operator": trial.mutant.operator, "seconds": seconds}
            results[row["key"]] = row
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{found} {trial.mutant} {by}", flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
