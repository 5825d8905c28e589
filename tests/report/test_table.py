import pytest

from pdistill.report.columns import column_name
from pdistill.report.table import pivot, table, three_digits


def test_table_exactly(row):
    rows = [
        row("teacher", 16, 1.2345),
        row("teacher", 16, 1.5, reference="digits:test"),
        row("teacher", 1, 4321.0),
        row("progressive/1", 1, 0.054321, train_steps=300, images_seen=9600),
        row("progressive/1", 1, 0.99, metric="precision", train_steps=300, images_seen=9600),
    ]
    expected = """
                               fd_pixels    fd_pixels     precision  seconds/    train   images
stage          nfe  solver  digits:train  digits:test  digits:train     image  updates     seen
-------------  ---  ------  ------------  -----------  ------------  --------  -------  -------
teacher         16  ddim            1.23         1.50                  0.0160    2,500  160,000
teacher          1  ddim           4,320                              0.00100    2,500  160,000
progressive/1    1  ddim          0.0543                      0.990   0.00100      300    9,600"""
    assert "\n" + table(rows) == expected


def test_margins_are_beside_their_values(row):
    rows = [
        row("a", 1, 5.314, margin=0.2378),
        row("a", 1, 0.5, metric="recall"),
        row("b", 1, 202.3, margin=4.0),
        row("c", 1, 345.2, margin=12.34),
        row("d", 1, 1234.5, margin=123.4),
        row("e", 1, 12345.0, margin=2999.0),
    ]
    _, body = pivot(rows)
    assert [line[3:5] for line in body] == [
        ["5.31 ± 0.24", "0.500"], ["202 ± 4.0", ""], ["345 ± 12", ""], ["1,230 ± 120", ""],
        ["12,300 ± 3,000", ""],
    ]  # fmt: skip


def test_settings_have_a_column_when_they_differ(row):
    rows = [
        row("teacher", 2, 1.0, guidance=0.0),
        row("teacher", 2, 2.0, guidance=1.5),
        row("ctm", 2, 3.0, guidance=0.0, gamma=0.25, solver="gamma"),
    ]
    header, body = pivot(rows)
    assert header[:6] == ["stage", "nfe", "solver", "guidance", "gamma", "fd_pixels\ndigits:train"]
    assert [line[:6] for line in body] == [
        ["teacher", "2", "ddim", "0", "", "1.00"],
        ["teacher", "2", "ddim", "1.5", "", "2.00"],
        ["ctm", "2", "gamma", "0", "0.25", "3.00"],
    ]
    header, body = pivot([row("a", 1, 1.0, guidance=2.0), row("a", 1, 2.0, guidance=2.0, seed=1)])
    assert header[:4] == ["stage", "nfe", "solver", "seed"]
    assert [line[3:5] for line in body] == [["0", "1.00"], ["1", "2.00"]]


def test_speeds_that_cannot_be_compared_are_left_out(row):
    """Of two devices or numbers of them, or of runs whose few batches were not enough to tell."""
    one = row("a", 1, 1.0)
    assert "seconds/\nimage" in pivot([one, row("b", 1, 1.0, seconds_per_image=None)])[0]
    assert "seconds/\nimage" not in pivot([one, row("b", 1, 1.0, device="TPU v4")])[0]
    assert "seconds/\nimage" not in pivot([row("b", 1, 1.0, seconds_per_image=None)])[0]
    four, eight = (row("b", 1, 1.0, devices=num) for num in (4, 8))
    assert "seconds/\nimage" not in pivot([four, eight])[0]
    assert "seconds/\nimage" in pivot([one, four, four])[0]  # an earlier version does not say


def test_a_cascades_divisions_of_its_steps_are_lines_of_their_own(row):
    """With as many evaluations, but of other sizes."""
    rows = [
        row("lowdiff", 6, 1.0, solver="cascade", effective_nfe=3.25),
        row("lowdiff", 6, 2.0, solver="cascade", effective_nfe=2.5),
        row("teacher", 6, 3.0),
    ]
    header, body = pivot(rows)
    assert header[:5] == ["stage", "nfe", "solver", "effective_nfe", "fd_pixels\ndigits:train"]
    assert [line[1:5] for line in body] == [
        ["6", "cascade", "3.25", "1.00"],
        ["6", "cascade", "2.5", "2.00"],
        ["6", "ddim", "", "3.00"],
    ]


def test_rows_of_one_model_meet_whatever_lies_between(row):
    """A metric added on resume goes to the line of its model."""
    rows = [row("a", 1, 1.0), row("b", 1, 2.0), row("a", 1, 3.0, metric="precision")]
    header, body = pivot(rows)
    columns = slice(3, 5)
    assert header[columns] == ["fd_pixels\ndigits:train", "precision\ndigits:train"]
    assert [line[columns] for line in body] == [["1.00", "3.00"], ["2.00", ""]]


def test_what_cannot_be_compared_has_columns_of_its_own(row):
    """Distances of other numbers of samples, and metrics in other spaces; the header names them."""
    rows = [
        row("a", 1, 1.0),
        row("a", 1, 0.8, metric="precision", features="pixels"),
        row("b", 1, 2.0, num_samples=10000),
        row("b", 1, 0.3, metric="precision", features="inception"),
        row("b", 1, 0.7, metric="recall", features="inception"),
    ]
    header, body = pivot(rows)
    assert header[3:8] == [
        "fd_pixels, 1,437 samples\ndigits:train",
        "precision, pixels\ndigits:train",
        "fd_pixels, 10,000 samples\ndigits:train",
        "precision, inception\ndigits:train",
        "recall\ndigits:train",
    ]
    assert [line[3:8] for line in body] == [
        ["1.00", "0.800", "", "", ""],
        ["", "", "2.00", "0.300", "0.700"],
    ]
    assert [column_name(name) for name in header[3:6]] == ["fd_pixels", "precision", "fd_pixels"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0.0, "0.00"), (1.0, "1.00"), (12.345, "12.3"), (123.4, "123"),
        (999.6, "1,000"), (1234.5, "1,230"), (-1234.5, "-1,230"), (1.5e7, "1.50e+07"),
        (0.00012345, "0.000123"), (0.000012345, "1.23e-05"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def testthree_digits(value, text):
    assert three_digits(value) == text


def test_what_images_of_others_lack_is_blank():
    """Rows of `evaluate --images`: no solver, no training; the Inception Score has no reference."""
    row = {"stage": "a.npz", "nfe": None, "solver": None, "seed": None, "value": 3.0}
    header, (cells,) = pivot([row | {"metric": "is", "reference": None}])
    assert header[3] == "is\n"
    assert cells == ["a.npz", "", "", "3.00", "", ""]


def test_models_and_settings_of_evaluate_are_lines_of_their_own(row):
    """Nothing is lost where one stage name is of several models, trained on or told otherwise."""
    a, b = ({"model": f"runs/{name}/teacher", "checksum": i} for i, name in enumerate("ab", 1))
    rows = [row("teacher", 8, 0.4, **a), row("teacher", 8, 7.0, **b)]
    header, body = pivot(rows)
    assert header[3:5] == ["model", "fd_pixels\ndigits:train"]
    assert [line[3:5] for line in body] == [["runs/a/teacher", "0.400"], ["runs/b/teacher", "7.00"]]
    rows.append(row("teacher", 8, 0.3, **a | {"checksum": 2**31}))
    rows.append(row("teacher", 8, 9.0, label=3, **b))
    header, body = pivot(rows)
    assert header[3:7] == ["model", "checksum", "label", "fd_pixels\ndigits:train"]
    assert [line[3:7] for line in body] == [
        ["runs/a/teacher", "1", "", "0.400"],
        ["runs/b/teacher", "2", "", "7.00"],
        ["runs/a/teacher", "2147483648", "", "0.300"],
        ["runs/b/teacher", "2", "3", "9.00"],
    ]
    assert "runs/a/teacher  1  " in table(rows)  # words to the left


def test_ratios_to_other_neighbours_have_columns_of_their_own(row):
    ratio = {"metric": "nearest_neighbour_ratio"}
    rows = [
        row("a", 1, 1.0, held_out="x", **ratio),
        row("a", 1, 0.7, held_out="x", mirrored=True, **ratio),
        row("a", 1, 0.6, held_out="y", **ratio),
    ]
    header, [line] = pivot(rows)
    assert header[3:6] == [
        "nearest_neighbour_ratio, beside x\ndigits:train",
        "nearest_neighbour_ratio, beside x, with mirrors\ndigits:train",
        "nearest_neighbour_ratio, beside y\ndigits:train",
    ]
    assert line[3:6] == ["1.00", "0.700", "0.600"]
