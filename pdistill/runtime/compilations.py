"""Lines about programs that compile: that they still do, and how long it took."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator

from jax import monitoring

from pdistill.runtime.terminal import conclude, format_seconds, update

# Each is a scalar as it begins, and its seconds when it is over.
TRACING = "/jax/core/compile/jaxpr_trace_duration"
LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILATION = "/jax/core/compile/backend_compile_duration"
CACHE_HIT = "/jax/compilation_cache/cache_hits"
PATIENCE = 5.0  # seconds of a program's compilation without a line
INTERVAL = 30.0  # seconds between lines about one
# Names for people of functions that often compile for long.
WORDS = {"generate": "sampler", "init": "first parameters", "forward": "forward pass"}


class Compiled:
    """Programs that `counted` has compiled; a string of it tells people how, and how long it took.

    Attributes:
      depth: number of steps, from tracing on, that go on now, one within another; 0 for none.
      seconds: from the beginning until its last program was there; None if it had none.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.seconds: float | None = None
        self._began = time.monotonic()
        self._spent = {True: 0.0, False: 0.0}  # seconds, of programs from the cache and others

    def __str__(self) -> str:
        if self.seconds is None:
            return "was compiled before"
        return _took(self._spent[True] > self._spent[False], self.seconds)

    def add(self, seconds: float, from_cache: bool) -> None:
        """Adds a program that was there after so many seconds."""
        self.seconds = time.monotonic() - self._began
        self._spent[from_cache] += seconds


def _took(from_cache: bool, seconds: float) -> str:
    return f"{'taken from the cache' if from_cache else 'compiled'} in {seconds:.1f} s"


class Ticking:
    """Says that something still compiles, every INTERVAL seconds until it is stopped.

    Args:
      what: its name, for people. patience: seconds before the first line.
      busy: tells whether it compiles now.
    """

    def __init__(self, what: str, patience: float, busy: Callable[[], bool] = lambda: True) -> None:
        self.what = what
        self.has_spoken = False
        self._busy = busy
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(patience,), daemon=True)
        self._thread.start()

    def _run(self, patience: float) -> None:
        began, wait = time.monotonic(), patience
        while not self._stopped.wait(wait):
            wait = INTERVAL
            if self._busy():
                update(f"{self.what} still compiles, {format_seconds(time.monotonic() - began)}")
                self.has_spoken = True

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()  # nothing of it comes after the caller's next line


class _Thread(threading.local):
    """A thread's compilations."""

    prefix = ""  # of lines
    found: Compiled | None = None  # by `compiling`
    ticking: Ticking | None = None  # of the program that compiles now, outside `compiling`
    from_cache = False  # that program


_thread = _Thread()


@functools.cache
def tell_compilations() -> None:
    """Tells, from now on, about programs that compile for long, by JAX's events."""
    monitoring.register_scalar_listener(_begins)
    monitoring.register_event_listener(_happens)
    monitoring.register_event_duration_secs_listener(_ends)


def _begins(event: str, _, fun_name: str = "", **__) -> None:
    if event == COMPILATION:
        _thread.from_cache = False
    if _thread.found is not None:
        _thread.found.depth += event in (TRACING, LOWERING, COMPILATION)
    elif event == COMPILATION:
        name = fun_name.removeprefix("jit(").removesuffix(")").strip("_")
        _thread.ticking = Ticking(f"{_thread.prefix}{WORDS.get(name, name)}", PATIENCE)


def _happens(event: str, **_) -> None:
    if event == CACHE_HIT:
        _thread.from_cache = True


def _ends(event: str, seconds: float, **_) -> None:
    if (found := _thread.found) is not None:
        found.depth -= event in (TRACING, LOWERING, COMPILATION)
        if event == COMPILATION:
            found.add(seconds, _thread.from_cache)
    elif event == COMPILATION and (ticking := _thread.ticking):
        _thread.ticking = None
        ticking.stop()
        if ticking.has_spoken:
            conclude(f"{ticking.what} {_took(_thread.from_cache, seconds)}")


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """A context in which lines about this thread's programs begin with `name`."""
    tell_compilations()
    before, _thread.prefix = _thread.prefix, f"{name:<16} "
    try:
        yield
    finally:
        _thread.prefix = before


@contextlib.contextmanager
def counted() -> Iterator[Compiled]:
    """A context whose programs, of this thread, only count in what it gives."""
    tell_compilations()
    before, _thread.found = _thread.found, Compiled()
    try:
        yield _thread.found
    finally:
        _thread.found = before


@contextlib.contextmanager
def waiting(name: str, busy: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Says that what the body waits for compiles and, now and then, that it still does.

    Args:
      name: a run's. busy: tells whether it does.
    """
    update(f"{name:<16} compiles")
    ticking = Ticking(f"{name:<16}", INTERVAL, busy)
    try:
        yield
    finally:
        ticking.stop()


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Says that the body compiles and, at its end, how long that took."""
    with counted() as found, waiting(name, busy=lambda: found.depth > 0):
        yield
    conclude(f"{name:<16} {found}")
