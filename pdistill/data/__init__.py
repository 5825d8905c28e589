"""Data sets, their order, and batches on host or device."""

from pdistill.data.images import to_float, to_uint8
from pdistill.data.pipeline import Pipeline, make_batch
from pdistill.data.sources import Dataset, load_dataset

__all__ = ["Dataset", "Pipeline", "load_dataset", "make_batch", "to_float", "to_uint8"]
