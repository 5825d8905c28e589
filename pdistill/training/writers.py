"""A run's metrics in several places at once: TensorBoard, Weights & Biases, writers of a user's."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from pdistill.runtime.files import write_atomically
from pdistill.training.logging import MetricWriter, Writer


class MissingExtra(ImportError):
    """A package that only an extra of pdistill installs is not there."""


def find_wandb() -> ModuleType:
    """Imports wandb.

    Raises:
      MissingExtra: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra(
            "Weights & Biases is not installed; pip install 'pdistill[wandb]' installs it."
        ) from error
    return wandb


def default_writer(
    workdir: str | Path, *, wandb: bool = False, others: Sequence[Any] = ()
) -> Writer:
    """Makes the writer of an experiment.

    Args:
      workdir: the run directory, where TensorBoard's events go. wandb: also write to Weights &
        Biases, see `WandbWriter`.
      others: with the methods of clu's `metric_writers.MetricWriter`; they are called in every
        process and closed with the rest.

    Raises:
      MissingExtra: `wandb`, which is not installed.
    """
    writers = [WandbWriter(workdir)] if wandb else []
    return MultiWriter([MetricWriter(workdir), *writers, *others])


class MultiWriter(Writer):
    """Several writers, called one after the other; clu's own are among what it takes."""

    def __init__(self, writers: Sequence[Any]):
        self._writers = tuple(writers)

    def rewind(self, name: str, step: int) -> None:
        for writer in self._writers:
            if isinstance(writer, Writer):  # clu's interface has no such method
                writer.rewind(name, step)

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        for writer in self._writers:
            writer.write_summaries(step, values, metadata)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_images(step, images)

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_videos(step, videos)

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        for writer in self._writers:
            writer.write_audios(step, audios, sample_rate=sample_rate)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        for writer in self._writers:
            writer.write_histograms(step, arrays, num_buckets)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class WandbWriter(Writer):
    """A run at Weights & Biases, from the first process; a resumed experiment goes on in it.

    The environment variables of wandb hold: WANDB_PROJECT ("pdistill" without it), WANDB_MODE.
    There is no `rewind`, for what is logged there stays: after a crash the updates since the last
    save are there twice.

    Args:
      directory: the run directory; its name is the run's, and it keeps the run's id.

    Raises:
      MissingExtra: wandb is not installed.
    """

    def __init__(self, directory: str | Path):
        self._run = None
        if jax.process_index() > 0:
            return
        self._wandb = wandb = find_wandb()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "wandb_id.txt"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pdistill"),
            name=directory.resolve().name,
            dir=str(directory),
            id=path.read_text().strip() if path.exists() else None,
            resume="allow",
            settings=wandb.Settings(console="off"),  # it would keep each state of the status line
        )
        write_atomically(path, f"{self._run.id}\n")
        # Each round counts its updates from zero; wandb's own count must never fall.
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._log(step, {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        if self._run:
            self._log(step, {name: self._images(np.asarray(a)) for name, a in images.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._log(step, texts)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        if self._run:
            buckets = num_buckets or {}
            self._log(step, {
                name: self._wandb.Histogram(np.asarray(array), num_bins=buckets.get(name, 64))
                for name, array in arrays.items()
            })  # fmt: skip

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        if self._run:
            self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        if self._run:
            self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run:
            self._run.log({**values, "step": step})

    def _images(self, images: np.ndarray) -> Any:
        """One image, or a list for [N, H, W, C]."""
        if images.ndim == 4:
            return [self._wandb.Image(image) for image in images]
        return self._wandb.Image(images)
