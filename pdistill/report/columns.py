"""Meanings of the columns of results, and which of their values are better."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from pdistill.report.table import COLUMN, three_digits, varying


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's meaning, and which values are better: "lower", "higher", or "" for neither."""

    meaning: str
    better: str = ""


COLUMNS = {  # by a pattern of the whole name
    "stage": Column("the model, by its run's name; progressive/4 is distilled for 4 steps"),
    "nfe": Column("network evaluations for one image, what sampling costs", "lower"),
    "solver": Column("how samples are drawn from the network"),
    "effective_nfe": Column(
        "evaluations at the full size that cost as much as this cascade's", "lower"
    ),
    "variance": Column("noise that the solver adds in each step"),
    "guidance": Column("weight of guidance, 0 for none"),
    "gamma": Column("share of noise put back after each jump, 0 for none"),
    "churn": Column("noise that EDM's sampler adds before its steps, all together; 0 for none"),
    "model": Column("its folder"),
    "checksum": Column("of the model's parameters"),
    "codec": Column("the folder of what decodes latents"),
    "guide": Column("the folder of the model that guides"),
    "text_encoder": Column("what embeds prompts"),
    "prompts": Column("the file of prompts"),
    "background": Column("colour behind transparent parts of pictures"),
    "inception_weights": Column("the file of the FID network"),
    "channels": Column("of pictures"),
    "label": Column("the one of all samples"),
    "seed": Column("of the noise"),
    "fid": Column("Fréchet distance of 50,000 samples' Inception features to the data's", "lower"),
    r"fid_\d+k?": Column(
        "Fréchet distance of Inception features to the data's, of as many samples as the name "
        "says; to be compared with others of that number only",
        "lower",
    ),
    r"fd_(\w+)": Column(r"Fréchet distance to the data, in the space of \1", "lower"),
    "kid": Column("kernel distance of Inception features to the data's; around 0 is best", "lower"),
    r"kid_(\w+)": Column(
        r"kernel distance to the data, in the space of \1; around 0 is best", "lower"
    ),
    "cmmd": Column("kernel distance of CLIP's embeddings to the data's, times 1,000", "lower"),
    "clip_score": Column("likeness of images and their prompts to CLIP, at most 100", "higher"),
    "is": Column("Inception Score: samples that are sure of a class, and of all classes", "higher"),
    "precision": Column("share of samples that lie among the data, from 0 to 1", "higher"),
    "recall": Column("share of the data that lies among the samples, from 0 to 1", "higher"),
    "label_accuracy": Column("share of samples that a classifier takes for their label", "higher"),
    r"label_accuracy_(\w+)": Column(
        r"share of samples nearest to the mean of their label's images, in the space of \1",
        "higher",
    ),
    "class_share_min": Column("share of the digit that is drawn least; ideal: 0.1", "higher"),
    "class_share_max": Column("share of the digit that is drawn most; ideal: 0.1", "lower"),
    "nearest_neighbour_ratio": Column(
        "how far samples are from their nearest training image, held-out images counting 1; far "
        "below 1 would mean copies"
    ),
    "seconds/\nimage": Column(
        "of the fastest batch after the first, which compiles, all on one device", "lower"
    ),
    "train\nupdates": Column("updates that the model was trained for"),
    "images\nseen": Column("images in these updates, each as often as it was drawn"),
}  # fmt: skip


def column_name(header: str) -> str:
    """Finds a column's name in its header, which says more of it behind a comma or below."""
    return header if header in COLUMNS else re.split("[,\n]", header)[0]


def describe(name: str) -> Column:
    """Finds what a column means; nothing for a metric that is not the package's."""
    for pattern, column in COLUMNS.items():
        if match := re.fullmatch(pattern, name):
            return dataclasses.replace(column, meaning=match.expand(column.meaning))
    return Column("")


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """Says in a sentence how good the first model is, and the others, with how many evaluations.

    By the first metric whose values are better or worse; "" without one. It names the best of the
    first group's rows, and of the others' the best and the best of those with fewest evaluations.
    """
    ranked = [
        row
        for row in rows
        if row["nfe"] and describe(row["metric"]).better and math.isfinite(row["value"])
    ]
    if not ranked:
        return ""
    metric, reference = ranked[0]["metric"], ranked[0]["reference"]
    ranked = [row for row in ranked if not varying([row, ranked[0]], COLUMN)]
    better = describe(metric).better

    def badness(row: dict[str, Any]) -> tuple[float, int]:
        value = row["value"] if better == "lower" else -row["value"]
        if metric.startswith("kid"):
            value = max(value, 0.0)  # below it there is only chance
        return value, row["nfe"]

    first = [row for row in ranked if row["stage"] == ranked[0]["stage"]]
    others = [row for row in ranked if row["stage"] != ranked[0]["stage"]]
    chosen = [min(first, key=badness)]
    if others:
        chosen.append(min(others, key=badness))
        chosen.append(min(others, key=lambda row: (row["nfe"], badness(row))))
    told = [
        f"{row['stage']} {three_digits(row['value'])} with {row['nfe']:,}"
        for row in {id(row): row for row in chosen[1:]}.values()
    ]
    start = chosen[0]
    told.insert(
        0,
        f"{start['stage']} reaches {three_digits(start['value'])} with {start['nfe']:,} network "
        f"evaluation{'s' * (start['nfe'] > 1)} an image",
    )
    against = f" against {reference}" if reference else ""
    listed = " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
    return f"By {metric}{against} ({better} is better), {listed}."
