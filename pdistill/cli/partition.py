"""Splits the labels into parts of equal size, with near embeddings in a model.

    python -m pdistill.partition --model=runs/digits_msd/teacher --parts=2

Prints lists of labels for `lists` of a "multi_student" stage.
"""

import numpy as np
from flax import traverse_util

from pdistill.cli.options import (
    codec_option,
    command_parser,
    load_model,
    own_code_option,
    seed_option,
)
from pdistill.methods.parts.partition import by_balanced_kmeans
from pdistill.model import Model, ModelError
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("partition", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    codec_option(parser)
    own_code_option(parser)
    parser.add_argument("--parts", type=int, required=True, help="number of parts")
    seed_option(parser, "the first centres")
    options = parser.parse_args(arguments)
    with plain_errors(ValueError):
        model = load_model(options)
        parts = by_balanced_kmeans(label_embeddings(model), options.parts, options.seed)
    print(parts)


def label_embeddings(model: Model) -> np.ndarray:
    """Finds the embedding of each label in the network, [num_labels, D].

    Raises:
      ModelError: the network has no labels, or is neither a `DiT` nor a `UNet`.
    """
    for path in (("label", "Embed_0", "embedding"), ("class_emb", "kernel")):
        table = traverse_util.flatten_dict(model.network.params).get(path)
        if table is not None:
            return np.asarray(table, np.float64)[: model.network.num_labels]
    raise ModelError(
        "the model has no labels, or a network whose embedding of them is not known; give a DiT or "
        "a UNet with labels"
    )
