"""Parts of the labels whose embeddings in a model are near each other, equally many in each.

    python -m pdistill.partition --model=runs/digits_msd/teacher --parts=2

Prints lists of labels for `lists` of a "multi_student" stage.
"""

import numpy as np
from flax import traverse_util

from pdistill.cli.options import command_parser
from pdistill.methods.partition import by_balanced_kmeans
from pdistill.model import Model, ModelError, load
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("partition", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the first centres")
    options = parser.parse_args(arguments)
    with plain_errors(ValueError):
        model = load(options.model)
        parts = by_balanced_kmeans(label_embeddings(model), options.parts, options.seed)
    print(parts)


def label_embeddings(model: Model) -> np.ndarray:
    """What the network adds for each label, [num_labels, D], before any layer.

    Raises:
      ModelError: a network without labels, or of another form than `DiT` and `UNet`.
    """
    for path in (("label", "Embed_0", "embedding"), ("class_emb", "kernel")):
        table = traverse_util.flatten_dict(model.params).get(path)
        if table is not None:
            return np.asarray(table, np.float64)[: model.diffuser.num_labels]
    raise ModelError("the model has no labels, or a network whose embedding of them is not known")


if __name__ == "__main__":
    main()
