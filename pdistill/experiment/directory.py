"""Taking a run directory: its config.json, and which changes of a config may go on in it."""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pdistill import model as models
from pdistill.experiment.config import ConfigError, parse
from pdistill.experiment.defaults import filled
from pdistill.experiment.plan import Planned
from pdistill.methods import Run
from pdistill.runtime.files import read_json, write_atomically
from pdistill.runtime.lock import InUse, locked
from pdistill.runtime.own_code import NotImported, consent
from pdistill.runtime.processes import in_all
from pdistill.runtime.temporary import TEMPORARY, remove, sweep
from pdistill.runtime.terminal import say
from pdistill.samplers.noise import SEEDS

# Keys of a config that may change between runs of one directory: they change no result that is
# there, `microbatches` the order of sums. A metric or a gamma more is measured, one less is kept.
HARMLESS = (
    r"stages\[\d+\](\.\w+)*\.loop\.(log_every|max_skipped|profile_at|snapshot_every|offload)|"
    r"stages\[\d+\](\.\w+)*\.microbatches|(model\.network\.arguments|stages\[\d+\])\.remat|"
    r"wandb|estimate|mesh\..*|data\.resident|text_encoder|"
    r"evaluation\.(inception_weights|features|batch_size)|evaluation\.(metrics|gammas)(\[\d+\])?"
)

# The files that a run may have before its first save.
UNSAVED = (
    r"\.lock|config\.json|results\.jsonl|events\.out\.tfevents\..*|"
    r"captions\.json|text/(scale\.npz|known\.npz|prompts\.json|centres_\d+\.npy)|"
    r"captions/[^/]+/(embeddings\.json|\d+-\w+\.npy)|latents/\d+/(moments\.json|\d+\.npy)|"
    r".+/(codec\.json|parameters\.txt|(log|selection)\.jsonl)"
)

# What a kill or a library may leave besides, also as links.
LEFT = (
    r"(.+/)?[^/]+\.tmp-[0-9a-f]{12}(/.*)?|.+/checkpoints/\d+\.orbax-checkpoint-tmp.*|"
    r"(.+/)?\.nfs[0-9a-f]+|.+/profile/plugins/profile/.*|"
    r"wandb_id\.txt|wandb/(debug[^/]*\.log|latest-run|(offline-)?run-.*)"
)

# Names of what a run writes beside its stages' folders. Others are those of other commands.
OURS = r"config\.json|results\.jsonl|captions\.json|text|wandb_id\.txt|events\.out\..+"
FOLDERS = {"captions", "latents", "text"}

# What differs where a key of `Dataset.identity` does.
IMAGES = {
    "content": "other training images",
    "files": "training images of another number, or in files of other names or sizes,",
}


@contextlib.contextmanager
def taken(workdir: Path, *, new: bool = False) -> Iterator[None]:
    """Makes a run directory if it is not there, and holds its lock.

    Args:
      new: whether to move aside what the directory holds.

    Raises:
      ConfigError: another run is using it, or it cannot be used.
    """
    with contextlib.ExitStack() as held:
        problem = ""
        if jax.process_index() == 0:
            try:
                _take(workdir, held, new)
            except InUse as error:
                problem = f"{error}; wait for its end, or give another --workdir"
            except OSError as error:
                problem = f"cannot use the run directory {workdir}: {error}"
        if not in_all(not problem):  # nobody reads what is there before it is moved
            raise ConfigError(problem or f"the first process cannot use {workdir}")
        yield


def _take(workdir: Path, held: contextlib.ExitStack, new: bool) -> None:
    if new and workdir.exists():
        held.enter_context(locked(workdir))
        say(f"{workdir} is moved to {_move_aside(workdir)}")
    workdir.resolve().mkdir(parents=True, exist_ok=True)  # a link may lead to it
    held.enter_context(locked(workdir))


def check_seed(seed: int, workdir: Path | None = None) -> None:
    """Refuses a seed that JAX would take for another one.

    Args:
      workdir: the run directory that a run may go on in, also with such a seed.

    Raises:
      ConfigError: no run there has begun with it.
    """
    if 0 <= seed < SEEDS:
        return
    begun = None
    if workdir:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            begun = read_json(workdir / "config.json")["config"]["seed"]
    if begun != seed:
        raise ConfigError(f"seed must be from 0 to {SEEDS - 1}; got {seed}")


def claim(
    workdir: Path,
    config: dict[str, Any],
    stages: Sequence[Run],
    runs: Mapping[str, Planned],
    images: Mapping[str, str],
    check: Callable[[], None] = lambda: None,
    digest: Callable[[], str] | None = None,
) -> None:
    """Writes config.json, or checks the one that is there, if its run has saved anything.

    Args:
      config: the whole config, plain; stages and runs are what it makes. It is written, and
        compared, with all defaults.
      images: `Dataset.identity` of the training images.
      digest: `Dataset.digest`. check: called before it is written; may refuse what else is there.

    Raises:
      ConfigError: the directory holds a run of another config, or of other images. OSError: it
        cannot be used.
    """
    path, config = workdir / "config.json", _whole(config)
    generator = jax.config.jax_default_prng_impl
    code = {"versions": models.versions(), "commit": git_commit()}
    earlier: list[dict[str, Any]] = []
    unsaved = in_all(jax.process_index() > 0 or _is_unsaved(workdir))  # before one writes
    if path.exists() and not unsaved:
        try:
            there = json.loads(path.read_text())
            before = _whole(there["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged: {error!r}; --new starts again") from error
        _check_generator(workdir, there.get("generator", generator), generator)
        images = _check_images(workdir, there.get("images", {}), images, digest)
        _check_changes(workdir, before, config, stages, runs)
        earlier = _earlier(there, code)
    check()
    if jax.process_index() == 0:
        if path.exists():
            _clear(workdir, unsaved, runs)
            if unsaved and read_json(path)["config"] != config:
                remove(workdir / "wandb_id.txt")  # its curves are of another run
        resolved = {
            "config": config,
            **code,
            "earlier": earlier,
            "generator": generator,
            "images": images,
        }
        write_atomically(path, json.dumps(resolved, indent=2) + "\n")


def _earlier(there: dict[str, Any], code: dict[str, Any]) -> list[dict[str, Any]]:
    """The versions and commits, other than the present `code`, by which a run was started."""
    before = {name: there[name] for name in code if name in there}
    earlier = there.get("earlier", [])
    return [*earlier, before] if before and before != code and before not in earlier else earlier


def _clear(workdir: Path, unsaved: bool, runs: Iterable[str]) -> None:
    """Deletes what a kill has left, and of an unsaved run what is of its data or its codec.

    Not what other commands are writing beside the stages' folders.
    """
    folders = FOLDERS | {name.partition("/")[0] for name in runs}

    def is_ours(path: Path) -> bool:
        first, *below = path.relative_to(workdir).parts
        return first in folders if below else bool(re.match(f"({OURS}){TEMPORARY}$", first))

    sweep([path for path in workdir.rglob(f"*{TEMPORARY}") if unsaved or is_ours(path)])
    if unsaved:
        made = (workdir / name for name in ("captions.json", "text", "latents"))
        for path in (*made, *workdir.rglob("codec.json")):
            remove(path)


def _is_unsaved(workdir: Path) -> bool:
    """Whether all that is there is a config.json of ours and what such a run has before a save."""
    try:
        about = read_json(workdir / "config.json")
        if not (isinstance(about["config"], dict) and isinstance(about["versions"], dict)):
            return False
        known = (_is_of_unsaved(path, workdir) for path in workdir.rglob("*"))
        return not (workdir / "results.jsonl").stat().st_size and all(known)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_of_unsaved(path: Path, workdir: Path) -> bool:
    """Whether a path may be in a run directory that has nothing saved."""
    name = path.relative_to(workdir).as_posix()
    if re.fullmatch(LEFT, name):
        return True
    return not path.is_symlink() and (path.is_dir() or bool(re.fullmatch(UNSAVED, name)))


def _check_changes(
    workdir: Path,
    before: Mapping[str, Any],
    config: Mapping[str, Any],
    stages: Sequence[Run],
    runs: Mapping[str, Planned],
) -> None:
    """Raises ConfigError for changes that a run may not go on with; tells of more updates."""
    stages_before = _in_places(workdir, before.get("stages", []), config["stages"])
    changed = differences({**before, "stages": stages_before}, config)
    harmful = [
        change
        for change in changed
        if not is_harmless(*change, stages, runs)
        and not _is_taken_back(workdir, *change, stages, runs)
    ]
    if harmful:
        _check_version(workdir, before)
        lines = "; ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in harmful)
        raise ConfigError(
            f"{workdir} holds a run with another config; give another --workdir, or "
            f"--new to start again there. They differ in: {lines}"
        )
    for key, old, new in changed:
        if key.endswith("num_updates") and new > old:
            say(
                f"{stages[-1].name} goes on to {new} updates instead of {old}; an annealed "
                f"learning rate rises again{_more_that_moves(stages[-1])}, unlike in a run of "
                "that length from the start"
            )


def _more_that_moves(stage: Run) -> str:
    """Words for what else follows the part that is done of a run, in its own."""
    moves = getattr(getattr(stage.method, "between", None), "moves", False)
    return ", and the levels that cut its jumps go back to earlier ones" if moves else ""


def _check_generator(workdir: Path, before: str, now: str) -> None:
    """Raises ConfigError for a run that began with another generator of random numbers."""
    if before != now:
        raise ConfigError(
            f"{workdir} holds a run that draws its random numbers by {before}; set "
            f"JAX_DEFAULT_PRNG_IMPL={before}, or give another --workdir, or --new to start again "
            "there"
        )


def _check_images(
    workdir: Path,
    before: Mapping[str, str],
    now: Mapping[str, str],
    digest: Callable[[], str] | None,
) -> dict[str, str]:
    """All that is known of a run's images; raises ConfigError if they were others when it began.

    Runs of earlier versions do not say which they were. The digest is made where one is known.
    """
    if digest and "content" in before and "content" not in now:
        now = {**now, "content": digest()}
    known = next((key for key in ("content", "files") if key in before and key in now), None)
    if known and before[known] != now[known]:
        raise ConfigError(
            f"{workdir} holds a run on {IMAGES[known]} than are there now. Put those back, or give "
            "another --workdir, or --new to start again there"
        )
    return {**before, **now}


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config with all defaults, as JSON has it; its methods are those that are imported."""
    with consent(False):  # it may be of a directory from elsewhere
        return json.loads(json.dumps(filled(config)))


def _check_version(workdir: Path, before: Mapping[str, Any]) -> None:
    """Raises ConfigError for the config of a run that another version of pdistill began."""
    try:
        with consent(False):
            parse(before)
    except ConfigError as error:
        if isinstance(error.__cause__, NotImported):
            return  # a method that the config does not have now
        raise ConfigError(
            f"{workdir} holds a run of another version of pdistill, whose config this one does not "
            f"read ({error}). Its models load as they are; to train, give another --workdir, or "
            "--new to start again there"
        ) from error


def is_harmless(
    key: str, old: Any, new: Any, stages: Sequence[Run], runs: Mapping[str, Planned]
) -> bool:
    """Whether a run may go on with this change of its config."""
    if re.fullmatch(HARMLESS, key) or (re.fullmatch(r"stages\[\d+\]", key) and old is None):
        return True
    if key == "evaluation.solvers" and [*old] == ["ddim"] and not new:  # the default, before
        return True
    within, last = (
        r"stages\[(\d+)\](\.\w+)*\.loop\.save_every",
        r"stages\[(\d+)\]\.loop\.num_updates",
    )
    match = re.fullmatch(within, key) or re.fullmatch(last, key)
    if not match:
        return False
    index = int(match[1])
    of_stage = _of_stage(stages[index].name, runs)
    if key.endswith("save_every"):
        return not any(r.run.select for r in of_stage)  # saves are what the model is chosen among
    return (  # trained on, with nothing that has started from it
        index == len(stages) - 1 and len(of_stage) == 1 and isinstance(old, int) and old < new
    )


def _of_stage(name: str, runs: Mapping[str, Planned]) -> list[Planned]:
    """The runs of the stage of this name."""
    return [r for r in runs.values() if name in (r.name, r.name.rpartition("/")[0])]


def _in_places(workdir: Path, old: list[Any], new: list[Any]) -> list[Any]:
    """Old stages in the places of the new ones of their names, None for those added behind them.

    One that has gone is left out if it has saved nothing. If it has, if they are in another order,
    or if one is added before others, which may get another teacher, codec or model by that, all are
    returned as they are.
    """
    named = {stage.get("name"): stage for stage in old}
    found = [named.get(stage["name"]) for stage in new]
    kept = [
        stage for stage in old if stage in found or _has_saved(workdir / str(stage.get("name")))
    ]
    return found if found == kept + [None] * (len(new) - len(kept)) else old


def _has_saved(folder: Path) -> bool:
    """Whether a stage has saved a state or a model, of any of its runs."""
    return bool(_saves(folder)) or any(folder.rglob("model"))


def _saves(folder: Path) -> list[int]:
    """The updates after which states were saved, without what Orbax has not finished."""
    return [int(path.name) for path in folder.rglob("checkpoints/*") if path.name.isdigit()]


def _is_taken_back(
    workdir: Path, key: str, old: Any, new: Any, stages: Sequence[Run], runs: Mapping[str, Planned]
) -> bool:
    """Whether a last stage is given fewer updates again, and has none beyond those of its model."""
    if not (isinstance(new, int) and is_harmless(key, new, old, stages, runs)):
        return False
    [planned] = _of_stage(stages[-1].name, runs)
    folder = workdir / planned.name
    if not key.endswith("num_updates") or not (folder / "model").exists():
        return False
    done = models.read_card(folder / "model", codec=planned.makes_codec)["train_steps"]
    return max(_saves(folder), default=0) <= done <= planned.run.loop.num_updates


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Differences of two plain configs, as (key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        prefix = f"{path}." if path else ""
        pairs = [(f"{prefix}{key}", old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(path, old, new)]
    return [found for p, a, b in pairs for found in differences(a, b, p)]


def git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _move_aside(directory: Path) -> Path:
    """Renames to the first of <directory>.1, .2, ... that is free; of a link, what it leads to."""
    directory = directory.resolve() if directory.is_symlink() else directory
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    return directory.rename(target)
