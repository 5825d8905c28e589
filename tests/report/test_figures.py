import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from pdistill.report import figures, mosaics, tile


def lines(axes):
    """{label: (x, y)} of the labelled lines."""
    return {
        line.get_label(): tuple(map(list, line.get_data()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def labels(texts):
    return [text.get_text() for text in texts]


def test_samples_show_every_pixel(tmp_path):
    rng = np.random.default_rng(0)
    fine, coarse, student = rng.integers(0, 256, (3, 20, 8, 8, 1), np.uint8)
    groups = {"teacher": {1: coarse, 16: fine}, "ab": {1: student}}
    figure = mosaics.samples(groups)
    (axes,) = figure.axes
    assert labels(axes.get_xticklabels()) == ["16", "1"]
    assert labels(axes.texts) == ["teacher", "ab"]
    figures.save(figure, tmp_path / "samples.png")
    picture = np.asarray(Image.open(tmp_path / "samples.png"))
    side, name = 2 * 4 * 37, 2 * 32  # a mosaic of 16 digits, twice; a row's name above it
    left, top = 8, 90 + name
    assert picture.shape == (top + 2 * side + name + 8, left + 2 * side + 24 + 8, 4)

    def cell(row, column):
        y, x = top + row * (side + name), left + column * (side + 24)
        return picture[y : y + side, x : x + side]

    for place, images in (((0, 0), fine), ((0, 1), coarse), ((1, 1), student)):
        np.testing.assert_array_equal(cell(*place)[..., :3], tile(images[:16], scale=8))
        assert (cell(*place)[..., 3] == 255).all()
    assert (cell(1, 0)[..., 3] == 0).all()  # the page's own ground, bright or dark
    above = picture[top - name : top, left : left + side]
    assert (above[..., 3] > 0).any()  # its name


def test_names_are_no_mathematics():
    name = "of $5 and $6"
    figure = mosaics.samples({name: {1: np.zeros((1, 8, 8, 1), np.uint8)}})
    (text,) = figure.axes[0].texts
    assert not text.get_parse_math()


def test_shades_of_lines_go_from_dark_to_bright():
    data = np.ones(4)
    runs = {str(i): (data, data) for i in range(3)}
    lines = figures.spectra(runs).axes[0].get_lines()
    found = [line.get_color() for line in lines if line.get_label() in runs]
    assert found == [matplotlib.colormaps["viridis"](x) for x in (0.0, 0.375, 0.75)]


def test_names_wider_than_their_row_are_not_cut_off():
    name = "guided_progressive/16, 16 steps"
    figure = mosaics.samples({name: {1: np.zeros((1, 8, 8, 1), np.uint8)}})
    figure.draw_without_rendering()
    assert figure.axes[0].texts[0].get_window_extent().x1 < figure.bbox.x1


def test_samples_of_many_steps_stay_within_the_page():
    images = np.zeros((16, 8, 8, 1), np.uint8)
    figure = mosaics.samples({"teacher": {2**k: images for k in range(14)}})
    assert figure.get_figwidth() * figures.DPI < 2500


def test_neighbours_stand_below_their_sample(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 8, 8, 1), np.uint8)
    figure = mosaics.neighbours({"teacher": images[:12], "progressive/1": images[:5]})
    (axes,) = figure.axes
    assert labels(axes.texts) == ["teacher", "progressive/1"]
    figures.save(figure, tmp_path / "neighbours.png")
    picture = np.asarray(Image.open(tmp_path / "neighbours.png").convert("RGB"))
    left, top, cell = 8, 2 * 32, 2 * 4 * 9  # 8 pixels of an image's 1
    for column, row in ((0, 0), (0, 3), (11, 2)):
        y, x = top + row * cell + 8, left + column * cell + 8  # inside the light border
        shown = picture[y : y + 64 : 8, x : x + 64 : 8, :1]
        np.testing.assert_array_equal(shown, images[column, row])


def test_spectra_are_drawn_as_multiples_of_the_datas():
    """Of log10: 0.3 more is twice the power. Where either has none, there is nothing to draw."""
    data = np.array([2.0, 1.0, -2.0, -np.inf, -3.0])
    drawn = np.array([2.0, 1.30103, -3.0, -1.0, -np.inf])
    (axes,) = figures.spectra({"teacher": (drawn, data)}).axes
    np.testing.assert_allclose(lines(axes)["teacher"][1], [1, 2, 0.1, np.nan, np.nan], rtol=1e-5)
    assert set(lines(axes)["data"][1]) == {1}
    assert axes.get_xlim() == (0, 4)
    assert axes.get_ylim() == (0.05, 5)


def test_metrics_in_the_unit_interval_are_drawn_in_it(row):
    rows = [row("teacher", n, 0.1 * n, metric="recall", reference=None) for n in (1, 2)]
    (axes,) = figures.metric(rows, "recall", None).axes
    assert axes.get_ylim() == (0, 1)
    assert axes.get_title(loc="left") == "recall"


def test_metric_lines(row):
    rows = [
        row("teacher", 8, 2.0),
        row("teacher", 1, 50.0),
        row("teacher", 1, 7.0, reference="digits:test"),
        row("progressive/4", 4, 3.0),
        row("progressive/1", 1, 5.0),
    ]
    (axes,) = figures.metric(rows, "fd_pixels", "digits:train").axes
    assert lines(axes) == {"teacher": ([1, 8], [50, 2]), "progressive": ([1, 4], [5, 3])}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert list(axes.get_xticks()) == [1, 4, 8]
    assert labels(axes.get_xticklabels()) == ["1", "4", "8"]
    assert labels(axes.get_yticklabels()) == ["1", "2", "5", "10", "20", "50", "100"]
    assert axes.get_title(loc="left") == "fd_pixels against digits:train"


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.26, 0.47], ["0.2", "0.3", "0.4", "0.5"]),
        ([1.0], ["0.9", "1", "2"]),
        ([0.3, 8.0], ["0.2", "0.5", "1", "2", "5", "10"]),
        ([0.02, 300.0], ["0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_metric_ticks(row, values, ticks):
    rows = [row("a", nfe, value) for nfe, value in enumerate(values, 1)]
    (axes,) = figures.metric(rows, "fd_pixels", "digits:train").axes
    assert labels(axes.get_yticklabels()) == ticks
    low, high = axes.get_ylim()
    assert [f"{low:g}", f"{high:g}"] == [ticks[0], ticks[-1]]


def test_a_cascade_is_drawn_at_what_it_costs(row):
    rows = [
        row("teacher", 4, 2.0),
        row("lowdiff", 6, 1.0, solver="cascade", effective_nfe=3.254),
        row("lowdiff", 6, 3.0, solver="cascade", effective_nfe=2.5),
    ]
    (axes,) = figures.metric(rows, "fd_pixels", "digits:train").axes
    drawn = lines(axes)
    assert drawn["lowdiff, cascade"] == ([2.5, 3.254], [3.0, 1.0])
    assert list(axes.get_xticks()) == [2.5, 3.254, 4]
    assert labels(axes.get_xticklabels()) == ["2.5", "3.25", "4"]


def test_metric_averages_seeds_and_takes_the_last_stage(row):
    rows = [
        row("guided/stage1", 4, 100.0, seed=0),
        row("guided/4", 4, 1.0, seed=0),
        row("guided/4", 4, 4.0, seed=1),
    ]
    (axes,) = figures.metric(rows, "fd_pixels", "digits:train").axes
    assert lines(axes) == {"guided": ([4], [2.5])}
    dots = [line.get_ydata() for line in axes.get_lines() if line.get_label().startswith("_")]
    np.testing.assert_array_equal(np.concatenate(dots), [1.0, 4.0])


def test_labels_show_what_differs(row):
    same = [row("a", 1, 1.0, guidance=1.0), row("b/2", 1, 1.0, guidance=1.0)]
    assert list(figures.line_labels(same).values()) == ["a", "b"]
    rows = [
        row("a", 1, 1.0, guidance=0.0),
        row("a", 1, 1.0, guidance=1.5),
        row("a", 1, 1.0, solver="heun", guidance=0.0),
        row("c", 1, 1.0, solver="gamma", gamma=0.5),
    ]
    assert list(figures.line_labels(rows).values()) == [
        "a, ddim, guidance 0",
        "a, ddim, guidance 1.5",
        "a, heun, guidance 0",
        "c, gamma, gamma 0.5",
    ]


def test_a_line_looks_the_same_in_every_figure(row):
    rows = [row("a", 1, 1.0), row("b", 1, 1.0), row("b", 1, 1.0, reference="digits:test")]
    found = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.get_lines()}["b"]
        for reference in ("digits:train", "digits:test")
        for axes in figures.metric(rows, "fd_pixels", reference).axes
    ]
    assert found[0] == found[1]


def test_neighbour_ratio_has_its_threshold(row):
    rows = [row("a", n, 0.5, metric="nearest_neighbour_ratio") for n in (1, 2)]
    (axes,) = figures.metric(rows, "nearest_neighbour_ratio", "digits:train").axes
    assert axes.get_yscale() == "linear"
    assert any(set(line.get_ydata()) == {0.8} for line in axes.get_lines())
    assert ["0.8" in text for text in labels(axes.texts)] == [True]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 0.8  # seen even if all values lie below


def test_undrawable_values_are_left_out(row):
    bad = [row("a", n, value) for n, value in ((2, float("nan")), (4, float("inf")), (8, -1.0))]
    assert not any(map(figures.drawable, bad))
    (axes,) = figures.metric([*bad, row("a", 1, 3.0)], "fd_pixels", "digits:train").axes
    assert lines(axes) == {"a": ([1], [3])}
    assert list(axes.get_xticks()) == [1]


def test_kernel_distances_below_zero_count(row):
    """Unbiased, they are below it by chance where images are good: none is left out of a mean."""
    values = {1: (0.02, 0.021), 2: (0.0004, -0.0003), 4: (-0.0002, -0.0001)}
    rows = [
        row("m", nfe, value, metric="kid_pixels", seed=seed)
        for nfe, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    figure = figures.metric(rows, "kid_pixels", "digits:train")
    (axes,) = figure.axes
    nfes, means = lines(axes)["m"]
    assert nfes == [1, 2, 4]
    np.testing.assert_allclose(means, [0.0205, 0.00005, -0.00015])
    dots = next(line for line in axes.get_lines() if line.get_marker() == ".")
    assert sorted(dots.get_ydata()) == sorted(itertools.chain(*values.values()))
    figure.draw_without_rendering()
    assert axes.get_ylim()[0] <= -0.0003
    (axes,) = figures.metric(rows[:2], "kid_pixels", "digits:train").axes
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("solver_nfe", [lambda n: 2 * n - 1, lambda n: n])
def test_nfe_labels_do_not_overlap(row, solver_nfe):
    rows = [row("a", nfe, 1.0) for k in range(14) for nfe in {2**k, solver_nfe(2**k)}]
    figure = figures.metric(rows, "fd_pixels", "digits:train")
    figure.draw_without_rendering()
    shown = [text for text in figure.axes[0].get_xticklabels() if text.get_text()]
    boxes = [text.get_window_extent() for text in shown]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert len(shown) >= 9


def test_losses_end_to_end():
    runs = {
        "progressive/2": (np.array([10.0, 20.0, 30.0]), np.array([4.0, 3.0, 2.0])),
        "progressive/1": (np.array([10.0, 20.0]), np.array([2.0, 1.0])),
    }
    (axes,) = figures.losses("progressive", runs).axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[10, 20, 30], [40, 50]]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[4, 3, 2], [2, 1]]
    assert axes.get_xlim() == (0, 50)
    assert labels(axes.texts) == ["2", "1"]
    assert [text.xy for text in axes.texts] == [(15, 1), (40, 1)]  # above the middle of its updates
    assert axes.get_title(loc="left") == "progressive"
    assert axes.get_yscale() == "log"


def test_labels_of_many_runs_do_not_overlap():
    """Of 14 rounds, and of a short run between long ones, whose names are wider than they."""
    curve = np.linspace(1, 100, 20), np.linspace(2, 1, 20)
    runs = {f"progressive/{2**k}": curve for k in range(13, -1, -1)}
    some = {f"p/{name}": curve for name in ("a", "b", "c")} | {"p/long": (curve[0] / 99, curve[1])}
    for name, each, seen in (
        ("progressive", runs, {"8192", "1"}),
        ("p", some | {"p/other": curve}, {"a", "b", "c"}),
    ):
        figure = figures.losses(name, each)
        figure.draw_without_rendering()
        texts = [text for text in figure.axes[0].texts if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        assert set(labels(texts)) >= seen


def test_titles_are_as_wide_as_their_plots(row):
    metric, reference = "nearest_neighbour_ratio", "fashion_mnist:train"
    rows = [row("teacher", n, 0.9, metric=metric, reference=reference) for n in (1, 2)]
    curve = {"a" * 60: (np.array([1.0, 2.0]), np.array([1.0, 2.0]))}
    drawn = (
        figures.metric(rows, metric, reference),
        figures.losses("a" * 60, curve),
        figures.selection("a " * 30, [{"step": 1, "value": 1.0, "metric": "fid"}], None),
    )
    for figure in drawn:
        figure.draw_without_rendering()
        title = next(text for text in figure.findobj(Text) if len(text.get_text()) > 40)
        box = title.get_window_extent()
        assert box.x1 < figure.bbox.x1
        assert box.y1 < figure.bbox.y1


def test_losses_below_zero_are_drawn():
    losses = {"gan": (np.array([1.0, 2.0]), np.array([-1.0, 1.0]))}
    (axes,) = figures.losses("gan", losses).axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] < -1


def test_save_leaves_the_old_file_when_it_fails(tmp_path):
    class Broken:
        def savefig(self, path, format):
            path.write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        figures.save(Broken(), path)
    assert path.read_bytes() == b"old"


def test_selections():
    """The kept model is the one with the smallest value; spectra are multiples of the data's."""
    rows = [
        {"step": step, "metric": "fd_pixels", "value": value, "spectrum": [0.0, -value]}
        for step, value in ((100, 3.0), (200, 1.0), (300, 2.0))
    ]
    above, below = figures.selection("gan", rows, np.array([0.0, -1.0])).axes
    curve, kept = above.lines
    assert list(curve.get_xdata()) == [100, 200, 300]
    assert list(curve.get_ydata()) == [3.0, 1.0, 2.0]
    assert (list(kept.get_xdata()), kept.get_label()) == ([200], "kept: update 200")
    drawn = [line.get_ydata() for line in below.lines]
    np.testing.assert_allclose(drawn, [[1, 0.01], [1, 1], [1, 0.1], [1, 1]])
    assert len(figures.selection("gan", rows, None).axes) == 1


def test_against_guidance(row):
    """Points in the order of the weights; a foreign row may have no step count."""
    rows = [
        row("guided", 4, value, metric=metric, guidance=weight, num_steps=4)
        for metric in ("fd_pixels", "recall")
        for weight, value in ((2.0, 3.0), (0.0, 1.0))
    ]
    (axes,) = figures.against_guidance(rows, "recall").axes
    assert axes.get_title(loc="left") == "recall"
    assert axes.get_ylabel() == "higher is better"
    assert lines(axes) == {"guided, 4 steps": ([0.0, 2.0], [1.0, 3.0])}
    more = [
        row("guided", 4, 5.0, metric="recall", guidance=2.0, num_steps=4, seed=1),
        row("guided", 8, 9.0, metric="recall", guidance=2.0, num_steps=4, solver="heun"),
        row("own", 8, 7.0, metric="recall", guidance=2.0),
        *(row("ctm", 4, g, metric="recall", guidance=2.0, num_steps=4, solver="gamma", gamma=g)
          for g in (0.5, 1.0)),
    ]  # fmt: skip
    (axes,) = figures.against_guidance([*rows, *more], "recall").axes
    assert lines(axes) == {
        "guided, 4 steps, ddim": ([0.0, 2.0], [1.0, 4.0]),
        "guided, 4 steps, heun": ([2.0], [9.0]),
        "own, 8 steps, ddim": ([2.0], [7.0]),
        "ctm, 4 steps, gamma, gamma 0.5": ([2.0], [0.5]),
        "ctm, 4 steps, gamma, gamma 1": ([2.0], [1.0]),
    }


def test_plots_are_as_wide_as_a_phone(row):
    """So that the page need not make their text smaller; a legend's lines stay within."""
    name = "guided_progressive_with_a_long_name"
    rows = [row(f"{name}{i}", n, 1.0, guidance=float(i)) for i in range(3) for n in (1, 2)]
    run = {name: (np.arange(1.0, 3), np.ones(2))}
    drawn = [
        figures.metric(rows, "fd_pixels", "digits:train"),
        figures.spectra({name: (np.zeros(3),) * 2, "a": (np.ones(5), np.zeros(5))}),
        figures.losses(name, run),
    ]
    for figure in drawn:
        assert round(figure.get_figwidth() * figures.DPI / 2) <= 440
        figure.draw_without_rendering()
        for legend in figure.legends:
            assert legend.get_window_extent().x1 <= figure.bbox.x1
