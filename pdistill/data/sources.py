"""Image data sets as uint8 arrays."""

import dataclasses
from pathlib import Path

import numpy as np

DIGITS_TRAIN = 1437  # the first 80% of a fixed permutation; the other 360 are held out


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set in host memory.

    Attributes:
      name: "digits:train" and the like; what `reference` is in results.jsonl.
      images: uint8 [N, H, W, C]. labels: int32 [N]. num_labels: labels are 0 .. num_labels - 1.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_labels: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]


def load_dataset(name: str, split: str = "train") -> Dataset:
    """Reads a split of a data set, decoded once.

    Args:
      name: "digits" (scikit-learn's 1,797 handwritten digits of 8x8 pixels, 16 grey levels
        stretched to 0..255), or any image data set of TensorFlow Datasets that is on disk in a
        random-access format; TFDS_DATA_DIR says where, ~/tensorflow_datasets by default.
      split: "train" or "test"; for TFDS anything it understands, such as "train[:10%]".

    Raises:
      ValueError: an unknown split, or a data set without images.
      FileNotFoundError: the data set is not on disk, or not in a format readable here.
    """
    if name == "digits":
        return _digits(split)
    return _tfds(name, split)


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.images))
    rows = {"train": order[:DIGITS_TRAIN], "test": order[DIGITS_TRAIN:]}
    if split not in rows:
        raise ValueError(f"digits has the splits train and test; got {split!r}")
    images = np.round(bunch.images[rows[split]] * (255 / 16)).astype(np.uint8)
    labels = bunch.target[rows[split]].astype(np.int32)
    return Dataset(f"digits:{split}", images[..., None], labels, num_labels=10)


def _tfds(name: str, split: str) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"unknown data set {name!r}; use digits or a data set of TensorFlow Datasets"
        ) from error
    if not Path(builder.data_path).exists():
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_path}; prepare it there in array_record "
            "format, or set TFDS_DATA_DIR to the folder that holds it"
        )
    try:
        source = builder.as_data_source(split)
    except NotImplementedError as error:
        raise FileNotFoundError(
            f"{builder.data_path} is a TFRECORD copy, which needs TensorFlow to read; prepare "
            f"{name} in array_record format (file_format='array_record')"
        ) from error
    if "image" not in builder.info.features:
        raise ValueError(f"{name} has no 'image' feature; it has {list(builder.info.features)}")
    labelled = "label" in builder.info.features
    examples = source.__getitems__(range(len(source)))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] if labelled else 0 for example in examples], np.int32)
    num_labels = builder.info.features["label"].num_classes if labelled else 1
    return Dataset(f"{name}:{split}", images, labels, num_labels)
