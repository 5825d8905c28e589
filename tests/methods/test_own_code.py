"""Methods, networks, schedules and columns of the user's own: kept, or refused before a run."""

import dataclasses
import enum
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Optional

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct
from flax.core import FrozenDict
from ml_collections import ConfigDict
from planning import LOOP, TEACHER, plan_of, stage
from tiny_experiment import tiny

from pdistill import model as models
from pdistill.diffusion import CosineSchedule, KarrasSchedule
from pdistill.experiment import cards
from pdistill.experiment.config import ConfigError, as_plain, convert, parse
from pdistill.experiment.defaults import fill_defaults
from pdistill.experiment.dry_run import dry_run
from pdistill.experiment.kinds import method_named
from pdistill.experiment.plan import Planned, first_of_each_method
from pdistill.experiment.run import Experiment
from pdistill.experiment.variants import with_imported_teacher
from pdistill.interop import write_folder
from pdistill.interop.hub import _names_own_code
from pdistill.methods import Ctm, Method, Teacher
from pdistill.methods.method import optimizers, roles
from pdistill.model import ModelError
from pdistill.networks import Network, build_network, describe_network
from pdistill.runtime.own_code import class_named, consent, name_of
from pdistill.training import Learner, Optimizer, StopSignals, frozen

ADAM, COSINE, KARRAS = Optimizer(1e-3), CosineSchedule(), KarrasSchedule()


class Small(nn.Module):
    """A network of few numbers."""

    out_channels: int
    scales: Any = 1.0
    seed: int = 0
    dropout: float = 0.5
    act: Callable = nn.sigmoid
    options: Any = FrozenDict()

    @nn.compact
    def __call__(self, z, logsnr, told, train=False):
        return nn.Dense(self.out_channels)(z) * self.act(logsnr)[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Straight:
    """A schedule that falls in equal steps."""

    top: float = 10.0
    ends: tuple[tuple[float, ...], ...] = ()
    options: Any = None

    def __call__(self, t):
        return self.top * (1 - 2 * jnp.asarray(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying(Method):
    """A student that moves towards zero, of parts that a test can replace."""

    optimizer: Optimizer = ADAM
    changes: tuple[tuple[str, Any], ...] = ()
    name: ClassVar[str] = "copying"

    class State(struct.PyTreeNode):
        student: Learner
        teacher: Network = frozen()

    @property
    def measured_at(self):
        return (1,)

    def init(self, key, *, teacher: Network):
        student = teacher.replace(**dict(self.changes))
        if student.params is None:
            student = student.init(key)
        return self.State(Learner.of(student, self.optimizer), teacher)

    def step(self, state, batch, key):
        student, norms = state.student.update(state.student.network)
        return state.replace(student=student), norms

    def product(self, state):
        return state.student.averaged


@dataclasses.dataclass(frozen=True)
class Untrained(Method):
    """A model of one step from an earlier one, in no updates."""

    name: ClassVar[str] = "untrained"
    measured_at: ClassVar = (1,)

    def init(self, key, *, teacher: Network):
        return teacher

    def product(self, state):
        return state

    def made_for(self):
        return (1,)


class UpToThree(Untrained):
    name: ClassVar[str] = "up to three"
    made_for = Method.made_for

    def most_steps(self, network):
        return 3


def planned(*stages, loop=LOOP, image_shape=(8, 8, 1)):
    teacher = dataclasses.replace(TEACHER, loop=loop)
    return plan_of(Small(1), teacher, *stages, image_shape=image_shape)


# --- Networks and schedules -----------------------------------------------------------------------

KEPT = Network(
    None,
    module=Small(
        1, scales=((1, 2), (3,)), seed=10**9, dropout=2.0, options=FrozenDict(a=FrozenDict(b=(1,)))
    ),
    head="v",
    schedule=Straight(4.0, ends=((-4.0,), (4.0,)), options=FrozenDict(a=(1,))),
    shape=(4, 4, 1),
    sampler="heun",
    enlarged=2,
)


def test_a_model_of_classes_of_ones_own_comes_back(tmp_path):
    """With its solver and its enlargement too; another solver is refused then."""
    card = models.describe_sampling(KEPT) | {
        "num_steps": 2, "clip": None, "stage": "mine", "method": "mine", "train_steps": 7,
        "images_seen": 70, "data": {"shape": (8, 8, 1), "noise_shape": KEPT.shape},
    }  # fmt: skip
    models.save(tmp_path / "mine/model", KEPT.init(jax.random.key(0)), **card)
    model = models.load(tmp_path / "mine")
    assert model.network.blank == KEPT
    assert model.sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="made for the solver heun; got ddim"):
        model.sample(jax.random.key(0), 2, solver="ddim")
    write_folder(tmp_path / "hub", model)
    assert 'load(".", own_code=True)' in (tmp_path / "hub/README.md").read_text()
    # A model that is not trained has its counts of the first that it is made of.
    run = stage(Untrained())
    given = Planned(run, {"one": "mine", "other": "others"}, {}, None, KEPT, (8, 8, 1))
    assert cards.inherited(given, tmp_path)["images_seen"] == 70
    assert given.parent == "mine"
    alone = dataclasses.replace(given, given={})
    assert cards.inherited(alone, tmp_path) == {"train_steps": 0, "images_seen": 0}


def saved(directory, part, name):
    """A model whose card has another name for its network or its schedule."""
    card = models.describe_sampling(KEPT) | {
        "num_steps": 2, "clip": None, "stage": "mine", "method": "mine", "train_steps": 7,
        "images_seen": 70, "data": {"shape": (8, 8, 1), "noise_shape": KEPT.shape},
        "average": {"width": 0.1, "updates": 7},
    }  # fmt: skip
    models.save(directory, KEPT.init(jax.random.key(0)), **card)
    file = directory / "model.json"
    card = json.loads(file.read_text())
    card[part]["name"] = name
    file.write_text(json.dumps(card))


@pytest.mark.parametrize(("part", "name"), [("network", "Small"), ("schedule", "Straight")])
def test_code_that_a_card_names_runs_with_consent_only(tmp_path, monkeypatch, part, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(f"from test_own_code import {name}")
    saved(tmp_path / "model", part, f"theirs:{name}")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    with pytest.raises(ModelError, match=f"names 'theirs:{name}'.* own_code=True or --own_code"):
        models.load(tmp_path / "model")
    with consent(False), pytest.raises(ModelError, match="names 'theirs"):
        models.load(tmp_path / "model", own_code=True)
    assert "theirs" not in sys.modules
    assert models.load(tmp_path / "model", own_code=True).network.blank == KEPT
    models.load(tmp_path / "model")  # now that the module is imported
    del sys.modules["theirs"]
    with pytest.raises(ModelError, match="names 'theirs"):
        models.load(tmp_path / "model")


def test_consent_is_for_what_is_named_only(tmp_path, monkeypatch):
    """Not for what a module that may be imported loads."""
    monkeypatch.syspath_prepend(tmp_path)
    saved(tmp_path / "model", "network", "theirs:Small")
    (tmp_path / "theirs.py").write_text("raise ValueError('it ran')")
    (tmp_path / "loads.py").write_text(
        f"import pdistill\npdistill.load({str(tmp_path / 'model')!r}, own_code=False)\n"
    )
    with consent(), pytest.raises(ValueError, match="names 'theirs:Small', code of its author"):
        class_named("loads:Some")


@pytest.mark.parametrize("more", [[], ["--own_code"]])
def test_a_run_takes_consent(tmp_path, more):
    saved(tmp_path / "model", "network", "theirs:Small")
    (tmp_path / "theirs.py").write_text("raise ValueError('it ran')")
    arguments = ["plan", "digits_pd:imported", f"--config.teacher={tmp_path / 'model'}", *more]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "pdistill", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    told = "cannot be imported: it ran" if more else "it names 'theirs:Small', code of its author's"
    assert told in found.stderr
    assert "Traceback" not in found.stderr


class Free(nn.Module):
    """Has a number that may be left away, and something else that is called network."""

    limit: float = None
    network: Any = None


def test_fields_of_networks_of_ones_own():
    about = describe_network(Free())
    assert about["arguments"] == {"limit": None, "network": None}
    assert build_network(**about) == Free()
    with pytest.raises(ValueError, match="limit must be a number; got 'x'"):
        build_network(about["name"], {"limit": "x"})


@pytest.mark.parametrize("inner", ["theirs:Small", "dit"])
def test_the_readme_of_a_nested_network_of_ones_own(tmp_path, inner):
    network = {"name": "routed", "arguments": {"network": {"name": inner, "arguments": {}}}}
    card = {"network": network, "schedule": {"name": "cosine"}, "data": {"name": "digits:train"}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    assert _names_own_code(tmp_path) == (inner == "theirs:Small")


@pytest.mark.parametrize(
    "line",
    [
        "average --run=. --width=0.1 --out=new",
        "compare --teacher=model --reference=given.npz --students=model@1",
        "convert --from=safetensors --source=folder --out=new",
        "evaluate --model=model --reference=given.npz --metrics=fd_pixels",
        "export --model=model --to=safetensors --out=new",
        "pairs --model=model --num=2 --out=new.npz",
        "prepare cifar10 --codec=codec",
        "partition --model=model --parts=2",
        "sample --model=model --out=new.npz",
    ],
)
def test_commands_ask_for_consent(tmp_path, monkeypatch, line):
    """Each refuses code that a card names, and runs it, which fails here, with --own_code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text("raise ValueError('it ran')")
    saved(tmp_path / "model", "network", "theirs:Small")
    (tmp_path / "averages/7").mkdir(parents=True)
    (tmp_path / "averages/7/0.1").symlink_to(tmp_path / "model")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "given.npz", images=np.full((4, 8, 8, 1), 9, np.uint8))
    (tmp_path / "folder/config.json").symlink_to(tmp_path / "model/model.json")
    (tmp_path / "codec").mkdir()
    codec = {"codec": {"name": "theirs:Small", "arguments": {}}, "mean": [0], "std": [1], "tile": 1}
    codec |= {"format": 1, "kind": "codec", "checksum": 0, "stage": "", "method": ""}
    (tmp_path / "codec/model.json").write_text(json.dumps(codec))
    command, *arguments = line.split()
    main = importlib.import_module(f"pdistill.cli.{command}").main
    with pytest.raises(SystemExit, match=r"it names 'theirs:Small', code of its author's own"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"'theirs:Small' cannot be imported: it ran"):
        main([*arguments, "--own_code"])


class Elsewhere:
    class Nested(Small): ...

    def init(self, key, *, some: list[Network], f: Callable[[int], Network]): ...


def local():
    class Hidden(Small): ...

    return Hidden(1)


def test_classes_of_a_script_have_no_name(monkeypatch):
    """No other program could import them, though this one can."""
    monkeypatch.setattr(sys.modules["__main__"], "Scripted", type("Scripted", (Small,), {}), False)
    monkeypatch.setattr(sys.modules["__main__"].Scripted, "__module__", "__main__")
    with pytest.raises(ValueError, match="__main__:Scripted is not found by that; define it at"):
        models.describe(KEPT.replace(module=sys.modules["__main__"].Scripted(1)))


def test_classes_by_name():
    assert class_named(name_of(Elsewhere.Nested), Small) is Elsewhere.Nested
    with pytest.raises(ValueError, match="'test_own_code:Straight' is not a subclass of flax"):
        class_named("test_own_code:Straight", nn.Module)
    with pytest.raises(ValueError, match="'os:path' is not a subclass"):
        models.build_schedule("os:path", {})
    with pytest.raises(ValueError, match="or a frozen dataclass of your own"):
        models.build_schedule("test_own_code:Elsewhere", {})
    with pytest.raises(ValueError, match="or a frozen dataclass of your own"):
        models.build_schedule("pdistill.training:Optimizer", {"learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": local()}, "Hidden is not found by that; define it at the top"),
        ({"schedule": lambda t: 1 - t}, "cannot be written down in a card; make it a frozen"),
        ({"module": Small(1, scales=jnp.tanh)}, "could not be loaded again: Object of type .* not"),
        ({"module": Small(1, scales=[1])}, r"another module .*scales=\(1,\)\), not .*=\[1\]\)"),
        ({"guidance": [0.0, 1.0]}, r"another guidance than it has: \(0.0, 1.0\), not \[0.0, 1.0\]"),
        ({"sampler": "fast"}, "solver must be one of .* got 'fast'"),
    ],
)
def test_a_product_that_no_card_can_keep(change, message):
    with pytest.raises(ValueError, match=message):
        models.check_kept(KEPT.replace(**change))


# --- What the plan refuses ------------------------------------------------------------------------


class OfDict(Copying):
    def init(self, key, *, teacher: Network):
        return {"student": teacher}

    def product(self, state):
        return state["student"]


class OfParams(Copying):
    def product(self, state):
        return state.student.averaged.params


class OfValues(Copying):
    def card(self, state):
        return {"count": float(state.student.count)}


class Unfed(Copying):
    def init(self, key, *, teacher: Network, width: int):
        return super().init(key, teacher=teacher)


class Unsure(Copying):
    def init(self, key, *, teacher: Network, start: Network | None):
        return super().init(key, teacher=teacher)


class Broken(Copying):
    def init(self, key, *, teacher: Network):
        raise KeyError("nowhere")


class Incomplete:
    name = "latent"
    path = ""


class WithColumn(Copying):
    columns = (Incomplete(),)


class Baseless(Copying):
    columns = (dataclasses.make_dataclass("Complete", [])(),)

    def init(self, key, *, base: Network):
        return super().init(key, teacher=base)


for attribute in ("name", "aligned", "path", "file", "shapes", "make", "read", "batch"):
    setattr(type(Baseless.columns[0]), attribute, "")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (OfDict(), "init must return a flax.struct.PyTreeNode, .*; it returns dict"),
        (OfParams(), "product must return a Network; it returns dict"),
        (OfValues(), r"card must return plain values; .*float.*\(test_own_code.py, line \d+\)"),
        (Unfed(), "its init needs 'width', which nothing gives"),
        (Unsure(), "it needs 'start', the name of an earlier stage"),
        (Broken(), r"KeyError: 'nowhere' \(test_own_code.py, line \d+\)"),
        (Copying(changes={}), "its fields must be hashable, as tuples are: unhashable"),
        (Copying(changes=(("schedule", np.cos),)), "cannot be written down in a card"),
        (WithColumn(), "Incomplete lacks aligned, file, shapes, make, read, batch"),
        (Baseless(), "its column '' is made by the network that init takes as teacher"),
    ],
)
def test_what_a_plan_refuses(method, message):
    given = {"base" if isinstance(method, Baseless) else "teacher": "teacher"}
    with pytest.raises(ConfigError, match=rf"stages\[1\] \(copying\): .*{message}"):
        planned(stage(method, given=given))


def test_errors_of_our_own_code_are_not_hidden():
    with pytest.raises(AttributeError, match="has no attribute"):
        planned(stage(Teacher(optimizer=None), "again", given={}))


# --- Names of networks, and fields ----------------------------------------------------------------


class Optionals(Copying):
    def init(
        self, key, *, teacher: "Network", start: Optional["Network"] = None, below: Network = None
    ):
        return super().init(key, teacher=teacher)


def test_networks_are_known_in_optional_types():
    assert roles(Optionals) == ("teacher", "start", "below")
    assert roles(Elsewhere) == ()
    run = planned(stage(Optionals()))["copying"]
    assert run.given == {"teacher": "teacher"}


class Untold(Copying):
    def init(self, key, *, teacher):
        return super().init(key, teacher=teacher)


class Whatever(Copying):
    def init(self, key, **given: Network):
        return super().init(key, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken(Copying):
    labels: int = 3


class Undecorated(Copying):
    width: int = 3


class Mode(enum.Enum):
    ONE = 1


class Renamed(Copying):
    """Needs no decorator, as it has no fields."""

    name: ClassVar[str] = "renamed"
    alias: "ClassVar[str]" = "another"


@dataclasses.dataclass(frozen=True)
class Marked(Copying):
    _: dataclasses.KW_ONLY
    width: int = 3


class Named(Copying):
    def init(self, key, *, model, labels=None, parts=(), teacher: Network):
        return super().init(key, teacher=teacher)


@pytest.mark.parametrize("cls", [Renamed, Marked, Named])
def test_classes_that_are_methods(cls):
    assert method_named(f"test_own_code:{cls.__name__}", "method") is cls


@dataclasses.dataclass(frozen=True)
class Made:
    width: int = 2
    twice: int = dataclasses.field(default=4, init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typed(Copying):
    kind: Literal["a", "b"] = "a"
    mixed: float | str = 0.5
    pair: tuple[str, float] = ("x", 1.0)
    anything: Any = None
    weights: dict = dataclasses.field(default_factory=dict)
    limit: float = float("inf")
    mode: Mode = Mode.ONE
    schedule: Callable = COSINE
    either: CosineSchedule | KarrasSchedule = KARRAS
    cache: ClassVar["dict[str, Unknown]"] = {}  # noqa: F821
    found: int = dataclasses.field(default=1, init=False)
    made: Made = Made()


def config(method, **fields):
    found = tiny()
    found.model.network = {"name": "test_own_code:Small", "arguments": {}}
    found.model.schedule = {"name": "test_own_code:Straight", "arguments": {}}
    mine = {"name": "mine", "method": method, "teacher": "teacher", "optimizer": {}} | fields
    found.stages = (found.stages[0], mine | {"loop": dict(found.stages[0]["loop"])})
    found.stages[1]["optimizer"] = dict(found.stages[0]["optimizer"])
    return found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "c"}, r"\[1\].kind must be one of 'a', 'b'; got 'c'"),
        ({"mixed": ()}, "mixed must be float; got"),
        ({"pair": ("x",)}, "pair must be a tuple of 2; got"),
        ({"mode": 1}, "mode is of type Mode, which no value .* bool, int, float, str, Literal"),
        ({"schedule": {}}, "schedule is of type Callable, which no value in a config is of"),
        ({"either": {}}, "CosineSchedule or KarrasSchedule, which a dictionary does not tell"),
        ({"found": 2}, "unknown key 'stages.1..found'"),
    ],
)
def test_fields_that_no_config_can_have(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(as_plain(config("test_own_code:Typed", **fields)))


def test_defaults_are_left_out_where_nothing_plain_means_them():
    whole = fill_defaults(config("test_own_code:Typed", mixed="c", weights={"a": [1]}))
    assert {"kind", "pair", "anything"} <= {*whole.stages[1]}
    assert not {"limit", "mode", "schedule", "either", "found"} & {*whole.stages[1]}
    method = parse(as_plain(whole)).stages[1].method
    assert (method.mixed, method.pair, method.weights["a"]) == ("c", ("x", 1.0), (1,))
    assert method.mode is Mode.ONE
    assert hash(method) is not None
    number = convert(float | str, 2, "")
    assert (number, type(number)) == (2.0, float)
    assert whole.stages[1]["made"] == {"width": 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Untold", "the argument 'teacher' of init without its type, such as Network"),
        ("Whatever", r"must name the networks of init, as teacher: Network; it has \*\*given"),
        ("Undecorated", "must be a frozen dataclass: write @dataclasses"),
        ("Taken", "has a field 'labels', which every stage has already; rename it"),
    ],
)
def test_classes_that_are_no_methods(name, message):
    with pytest.raises(ConfigError, match=message):
        parse(as_plain(config(f"test_own_code:{name}")))


def test_a_module_with_an_error_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_such_name.py").write_text("\nundefined\n")
    message = r"NameError: name 'undefined' is not defined \(no_such_name.py, line 2\)"
    with pytest.raises(ConfigError, match=message):
        parse(as_plain(config("no_such_name:Copying")))
    (tmp_path / "it_ends.py").write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"SystemExit: 3 \(it_ends.py, line 1\)"):
        parse(as_plain(config("it_ends:Copying")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several(Copying):
    more: tuple[Optimizer, ...] = ()


def test_optimizers_in_tuples():
    method = Several(more=(Optimizer(1e-3), Optimizer(1e-2, microbatches=7)))
    annealed = method.over(20)
    assert [o.num_updates for _, o in optimizers(annealed)] == [20, 20, 20]
    assert [name for name, _ in optimizers(method)] == ["optimizer", "more[0]", "more[1]"]
    with pytest.raises(ConfigError, match=r"more\[1\].microbatches 7 must divide the 16 images"):
        planned(stage(method))


# --- What is a method's own -----------------------------------------------------------------------


class Sized(Copying):
    """Runs of two resolutions, though the stage has none."""

    def unfold(self, stage, model):
        name = stage.name
        return [
            dataclasses.replace(stage, name=f"{name}/{n}", resolution=n, method=self.of(n))
            for n in (4, 8)
        ]

    def of(self, size):
        return dataclasses.replace(self, changes=(("shape", (size, size, 1)),))


def test_what_a_plan_leaves_to_a_method():
    """The resolutions of its runs, the steps that it is made for, and its class."""
    untrained = stage(Untrained(), loop=None)
    runs = planned(stage(Copying()), stage(Sized(), "sized"), untrained)
    assert [runs[f"sized/{n}"].image_shape for n in (4, 8)] == [(4, 4, 1), (8, 8, 1)]
    assert runs["untrained"].made_for == (1,)
    [*_, longest] = planned(stage(UpToThree(), "longest", loop=None)).values()
    assert longest.made_for == (1, 2, 3)
    names = [run.name for run in first_of_each_method(runs)]
    assert names == ["teacher", "copying", "sized/4"]


def test_the_layer_of_another_method_stays():
    teacher = {"name": "teacher", "method": "teacher"}
    ours, mine = {"name": "a", "method": "ctm"}, {"name": "b", "method": "test_own_code:Copying"}
    stages = tuple(s | {"layer": "conv/kernel"} for s in (ours, mine))
    found = with_imported_teacher(ConfigDict({"stages": (teacher, *stages)})).stages
    assert [s.get("layer") for s in found] == [None, Ctm.layer, "conv/kernel"]


# --- Updates and columns, before a run ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Halves:
    """A column whose file has been made elsewhere."""

    path: str
    name: ClassVar[str] = "half"
    aligned: ClassVar[bool] = True
    file: ClassVar[str] = "halves.npy"

    def shapes(self, network, num_images, flip):
        return {"half": jax.ShapeDtypeStruct((num_images, 2), jnp.float32)}

    def make(self, path, network, dataset, **_): ...

    def read(self, path):
        return json.loads(path.read_text())

    def batch(self, rows, mirrored):
        return rows["half"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(Copying):
    path: str = ""
    wrong: bool = False

    @property
    def columns(self):
        return (Halves(self.path),)

    def parts(self, step):
        return ("late",) if step else ()

    def step(self, state, batch, key, parts=()):
        assert batch["half"].shape == (16, 2)
        if self.wrong and parts:
            raise LookupError("late")
        return super().step(state, batch, key)


def test_updates_and_files_are_looked_at_before_a_run(tmp_path):
    """Each kind of update of a method of one's own; and a column needs no check of a codec."""
    path = tmp_path / "rows"
    path.write_text("{}")

    def begin(**fields):
        found = config("test_own_code:Halved", path=str(path), **fields)
        Experiment(parse(as_plain(found)), tmp_path / "run", StopSignals())

    with pytest.raises(ConfigError, match=r"mine: half.path: .*: half is not there, not \(\d+, 2"):
        begin()
    Halves.read = lambda self, path: {"half": np.zeros((1437, 2))}
    begin()
    with pytest.raises(ConfigError, match=r"mine: LookupError: late \(test_own_code.py, line \d+"):
        begin(wrong=True)
    found = config("test_own_code:Halved", path=str(path), wrong=True)
    with pytest.raises(ConfigError, match=r"mine: LookupError: late \(test_own_code.py, line \d+"):
        dry_run(found, [1], (1437, 8, 8, 1))
