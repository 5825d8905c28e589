import pytest

from pdistill.evaluation.metrics import DISTANCES, parse_metrics
from pdistill.features import EXTRACTORS
from pdistill.report.columns import describe, headline
from pdistill.report.table import pivot

METRICS = [
    *("fid", "kid", "cmmd", "is", "clip_score"),
    *("precision_recall", "class_shares", "label_accuracy"),
]


def every_metric():
    distances = [f"{kind}_{name}" for kind in ("fd", "kid") for name in EXTRACTORS]
    known = [name for name in distances if not name.endswith("_inception")]
    known += [f"label_accuracy_{name}" for name in EXTRACTORS]
    for metric in parse_metrics([*METRICS, "nearest_neighbour_ratio", *known]):
        for num in (50_000, 10_000, 1437):
            yield from metric.names(num)


def test_every_column_has_a_meaning(row):
    names = list(every_metric())
    changes = {"variance": "large", "guidance": 1.0, "gamma": 0.5, "churn": 4.0, "seed": 1}
    changes["effective_nfe"] = 2.0
    header, _ = pivot([row("a", 1, 1.0), row("a", 1, 1.0, **changes)])
    assert set(changes) <= set(header)
    for name in [*names, *header[:9], *header[-3:]]:
        assert describe(name).meaning, name
    for name in names:
        if name.startswith(DISTANCES):
            assert describe(name).better == "lower"
    assert describe("fd_pixels").meaning.endswith("pixels")
    assert {describe(name).better for name in ("is", "clip_score", "precision", "recall")} == {
        "higher"
    }


def test_a_metric_of_others_has_none():
    assert describe("fd") == describe("loss") == describe("") == describe("xkid")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "By fd_pixels against digits:train (lower is better), teacher reaches 2.00 with 8 "
            "network evaluations an image, p/4 2.50 with 4 and p/1 7.00 with 1.",
        ),
        (
            {"metric": "is", "reference": None},
            "By is (higher is better), teacher reaches 9.00 with 1 network evaluation an image "
            "and p/1 7.00 with 1.",
        ),
    ],
)
def test_headline(row, changes, sentence):
    """The teacher's best, the others' best, and their best with fewest evaluations, once each."""
    rows = [
        row("teacher", 8, 0.5, metric="nearest_neighbour_ratio"),  # better in no direction
        row("teacher", 8, 2.0, **changes),
        row("teacher", 1, 9.0, **changes),
        row("p/4", 4, 2.5, **changes),
        row("p/1", 1, 7.0, **changes),
        row("p/1", 1, 0.1, **changes | {"metric": "fd_classifier"}),
        row("p/2", 2, float("nan"), **changes),
    ]
    assert headline(rows) == sentence
    assert headline(rows[:1]) == headline([]) == ""


def test_headline_of_kernel_distances(row):
    """Below 0 there is only chance: of two that are, the one of fewer evaluations is the best."""
    values = (("a", 64, 0.3), ("b/4", 4, -0.002), ("b/2", 2, -0.001), ("b/1", 1, 0.1))
    rows = [row(stage, nfe, value, metric="kid") for stage, nfe, value in values]
    assert headline(rows).endswith(
        "a reaches 0.300 with 64 network evaluations an image, b/2 -0.00100 with 2 and b/1 0.100 "
        "with 1."
    )


def test_headline_compares_what_can_be_compared(row):
    """A distance of fewer samples is larger by its bias alone."""
    rows = [row("a", 64, 0.4), row("b", 1, 0.1, num_samples=9000), row("b", 2, 0.5)]
    assert "b 0.500 with 2." in headline(rows)


def test_headline_of_the_first_model_alone(row):
    assert headline([row("teacher", 64, 0.4)]) == (
        "By fd_pixels against digits:train (lower is better), teacher reaches 0.400 with 64 "
        "network evaluations an image."
    )
