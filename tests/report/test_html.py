import base64
import json
import re
import signal
from html.parser import HTMLParser

import numpy as np
import pytest

from pdistill.report import build
from pdistill.report.__main__ import main
from pdistill.report.runs import read_rows

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
CONFIG = {
    "config": {
        "seed": 3,
        "data": {"name": "digits", "flip": False},
        "model": {"network": {"name": "dit", "arguments": {"depth": 4}}, "head": "v"},
        "stages": [{"name": "teacher", "method": "teacher"}, {"name": "progressive"}],
    },
    "commit": "0123456789abcdef",
    "earlier": [{"commit": "fedcba9876543210"}, {"commit": None}],
}


class Page(HTMLParser):
    """Table rows, images {alt: PNG}, and texts {tag: [...]}; complains about unclosed tags."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.texts, self.tags, self._open = [], {}, {}, [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            attributes = dict(attributes)
            data = attributes["src"].removeprefix("data:image/png;base64,")
            self.images[attributes["alt"]] = base64.b64decode(data, validate=True)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open:
            return
        if self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data + " "
        self.texts.setdefault(self._open[-1], []).append(data)


@pytest.fixture
def full(row, workdir):
    rows = [
        row("teacher", 2, 3.0),
        row("teacher", 2, 0.9, metric="nearest_neighbour_ratio"),
        row("progressive/1", 1, 4.0, train_steps=300, devices=8),
    ]
    samples = {"teacher": {2: IMAGES}, "progressive/1": {1: IMAGES}}
    logs = {"teacher": [2.0, 1.0], "progressive/1": [1.0, 0.5]}
    pictures = {
        run: {
            "neighbours": np.zeros((3, 4, 8, 8, 1), np.uint8),
            "spectrum": np.zeros(5),
            "data_spectrum": np.ones(5),
        }
        for run in samples
    }
    return workdir(rows, samples, pictures, logs, CONFIG)


def test_page(full):
    path = build(full)
    assert path == full / "report.html"
    page = Page(path.read_text())
    assert page.texts["title"] == page.texts["h1"] == ["digits"]
    assert page.texts["h2"] == ["Samples", "Results", "Are they copies?", "Spectra", "Training"]
    assert page.texts["p"][0] == (
        "By fd_pixels against digits:train (lower is better), teacher reaches 3.00 with 2 network "
        "evaluations an image and progressive/1 4.00 with 1."
    )
    assert page.texts["p"][1] == (
        "seed 3 · data digits · model dit · stages teacher, progressive · "
        "commit fedcba9876, 0123456789 · measured on 8 x cpu"
    )
    assert page.texts["p"][2].endswith(
        "Images seen in training: teacher 160,000, progressive 160,000."
    )
    assert [[cell.strip() for cell in line] for line in page.rows] == [
        ["stage", "nfe ↓", "solver", "fd_pixels ↓ digits:train",
         "nearest_neighbour_ratio digits:train", "seconds/ image ↓", "train updates",
         "images seen"],
        ["teacher", "2", "ddim", "3.00", "0.900", "0.00200", "2,500", "160,000"],
        ["progressive/1", "1", "ddim", "4.00", "", "0.00100", "300", "160,000"],
    ]  # fmt: skip
    assert page.texts["dt"] == [
        "stage", "nfe", "solver", "fd_pixels", "nearest_neighbour_ratio", "seconds/ image",
        "train updates", "images seen",
    ]  # fmt: skip
    assert page.texts["dd"][3] == (
        "Fréchet distance to the data, in the space of pixels — lower is better"
    )
    assert list(page.images) == [
        "Samples",
        "fd_pixels against digits:train",
        "nearest_neighbour_ratio against digits:train",
        "Nearest training images",
        "Radial power spectra",
        "teacher: loss against updates",
        "progressive: loss against updates",
    ]
    files = {p.name: p.read_bytes() for p in (full / "figures").iterdir()}
    assert sorted(files) == [
        "losses_progressive.png",
        "losses_teacher.png",
        "metric_fd_pixels_digits_train.png",
        "metric_nearest_neighbour_ratio_digits_train.png",
        "neighbours.png",
        "samples.png",
        "spectra.png",
    ]  # and nothing temporary is left
    assert sorted(files.values()) == sorted(page.images.values())
    assert json.loads("".join(page.texts["pre"])) == CONFIG


def test_the_page_is_one_file(full):
    """Moved elsewhere it is whole: nothing is loaded, from other files or from the network."""
    text = build(full).read_text()
    assert not {"link", "script"} & set(Page(text).tags)
    rest = re.sub(r'src="data:image/png;base64,[\w+/=]+"', "", text)
    assert not re.search(r"src|href|url|//|@import", rest)


def test_the_page_fits_a_phone_and_the_dark(full):
    """What is wider than 390 pixels moves sideways by itself; no colour is fixed but on white."""
    text = build(full).read_text()
    widths = {alt: int(w) for alt, w in re.findall(r'alt="([^"]+)" width="(\d+)"', text)}
    wide = re.findall(r'<div class="wide"><img [^>]*alt="([^"]+)"', text)
    assert {alt for alt, width in widths.items() if width > 440} <= set(wide)
    assert '<div class="wide"><table>' in text
    assert "width=device-width" in text
    rules, _, _ = text.partition("</style>")
    before, dark, _ = rules.partition("@media (prefers-color-scheme: dark)")
    assert "color-scheme: light dark" in before
    named = dict(re.findall(r"--(\w+): (#\w+)", before))
    assert dark
    assert set(re.findall(r"--(\w+): #", rules.partition(dark)[2])) == set(named)
    assert not re.findall(r"(?<!-)(?:color|background): #", rules)


def test_same_input_same_bytes(full):
    first = build(full).read_bytes()
    assert build(full).read_bytes() == first


def test_everything_is_escaped(row, workdir):
    evil = '<script>alert("&amp;")</script>'
    rows = [
        row(evil.replace("/", ""), 1, 2.0, solver=evil, metric=evil, reference=evil, device=evil)
    ]
    rows.append({key: value for key, value in rows[0].items() if key != "device"})
    config = {"config": {"data": {"name": evil}}, "commit": evil}
    page = Page(build(workdir(rows, config=config, name="<b>é&lt;")).read_text(encoding="ascii"))
    assert not {"script", "b"} & set(page.tags)
    assert page.texts["h1"] == ["<b>é&lt;"]
    assert page.texts["p"][0].count(evil) == 2
    assert page.rows[1][2].strip() == evil
    assert json.loads("".join(page.texts["pre"])) == config
    assert list(page.images) == [f"{evil} against {evil}"]


def test_missing_pieces_are_left_out(row, workdir):
    rows = [row("a", 1, 1.0), row("a", 1, float("nan"), metric="fd_other")]
    page = Page(build(workdir(rows, name="results")).read_text())
    assert page.texts["h2"] == ["Results"]
    assert list(page.images) == ["fd_pixels against digits:train"]
    assert "details" not in page.tags
    page = Page(build(workdir([], samples={"a": {1: IMAGES}}, name="samples")).read_text())
    assert page.texts["h2"] == ["Samples"]
    assert list(page.images) == ["Samples"]
    assert "table" not in page.tags
    page = Page(build(workdir([], logs={"a": [1.0]}, name="logs")).read_text())
    assert page.texts["h2"] == ["Training"]
    assert list(page.images) == ["a: loss against updates"]


def test_command_line(full, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    main([str(full)])
    assert signal.getsignal(signal.SIGTERM) is handler  # called from code, it leaves signals alone
    assert capsys.readouterr().out == f"{full / 'report.html'}\n"
    with pytest.raises(SystemExit, match=r"error: no results\.jsonl in"):
        main([str(tmp_path / "nothing")])


def test_several_runs_are_one_table(workdir, row, capsys, tmp_path):
    first = workdir([row("teacher", 64, 0.4), row("student", 1, 0.5)], name="digits")
    other = workdir([row("teacher", 64, 0.3)], name="digits_gan")
    main([str(first), str(other)])
    shown = capsys.readouterr().out.splitlines()
    found = [line.split()[:3] + line.split()[4:5] for line in shown[3:]]
    assert found == [
        ["digits:", "teacher", "64", "0.400"],
        ["digits:", "student", "1", "0.500"],
        ["digits_gan:", "teacher", "64", "0.300"],
    ]
    with pytest.raises(SystemExit, match=r"nothing has no results.jsonl with rows"):
        main([str(first), str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="names of their own; got digits, digits"):
        main([str(first), str(first)])


def test_biases_are_of_a_number_of_samples(row, workdir):
    """Of each that rows have."""
    rows = [row("a", 1, 9.0, bias=0.2), row("a", 1, 9.0, bias=2.0, num_samples=100)]
    told = " ".join(Page(build(workdir(rows)).read_text()).texts["p"])
    assert "fd_pixels of 1,437 against digits:train 0.200, fd_pixels of 100 against" in told


def test_samples_in_turns_have_no_bias(row, workdir):
    """Of earlier versions: a codec's images, and samples after the captions of training images."""
    draws = {"bias": 0.2, "margin": 0.1, "standard_error": 0.05}
    told = {"reference": "digits:train", **draws}
    rows = [
        row("codec", 0, 9.0, **told),
        row("a", 1, 8.0, **told),
        row("a", 1, 7.0, **told | {"reference": "digits:test"}),
        row("a", 1, 0.5, metric="precision", margin=0.1),
    ]
    config = {"config": {"data": {"name": "digits", "train": "train"}}}
    run = workdir(rows, config=config)
    assert [row.keys() >= {*draws} for row in read_rows(run)] == [False, True, True, False]
    (run / "captions.json").write_text("{}")
    found = read_rows(run)
    assert [row.keys() & {*draws} for row in found] == [set(), set(), {*draws}, {"margin"}]
    page = build(run).read_text()
    assert "against digits:test 0.200" in page
    assert "against digits:train 0.200" not in page
