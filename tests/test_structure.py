"""The limits of the design's habits, see `benchmarks.structure`."""

import pytest

from benchmarks import structure
from benchmarks.structure import METHOD_CLASSES, files_of, inspect

DIRECTORIES = sorted(path.parent.name for path in structure.PACKAGE.glob("*/__init__.py"))


def listed(places):
    return "\n".join(map(str, places))


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_files_and_functions_are_short(directory):
    found = inspect(files_of(directory))
    assert found.files
    assert not found.long_files, listed(found.long_files)
    if directory != "configs":  # a published experiment is one table of numbers
        assert not found.long_functions, listed(found.long_functions)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_docstrings_say_what_a_thing_is_or_does(directory):
    found = inspect(files_of(directory))
    assert not found.riddles, listed(found.riddles)
    assert not found.sentences, listed(found.sentences)


def test_methods_have_few_classes():
    classes = inspect(files_of("methods")).classes
    assert len(classes) <= METHOD_CLASSES, listed(classes)


SAMPLE = '''"""Of a module."""


class Outer:
    """A class. Which one?

    Attributes:
      size: of the images. name: where it is.
      what: anything.
    """

    class Inner: ...

    def method(self):
        """Says that, and what. No more.

        That is all.
        """
'''


def test_everything_is_found(tmp_path):
    (tmp_path / "methods").mkdir()
    path = tmp_path / "methods/sample.py"
    lines = SAMPLE.splitlines()
    path.write_text(SAMPLE + "    # more\n" * 400 + "\n\ndef f():\n" + "    f()\n" * 60)
    found = inspect(files_of("methods", tmp_path), tmp_path)
    assert [place.text for place in found.classes] == ["Outer", "Inner"]
    assert [str(place) for place in found.long_files] == [
        f"pdistill/methods/sample.py:1: {len(lines) + 463} lines"
    ]
    assert [place.text for place in found.long_functions] == ["f, 61 lines"]
    assert [place.text for place in found.riddles] == ["Of a module"]
    for place in found.sentences:
        assert place.text in lines[place.line - 1]
    assert [place.text for place in found.sentences] == [
        *("Which one?", "size: of the images", "name: where it is", "That is all"),
    ]
    assert "sample" not in structure.table(tmp_path)
