"""The code on pages of documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Every fenced block of a page, in order: what stands behind the fence, and the text."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def titled(page: Path) -> dict[str, str]:
    """The files that a page shows, by their names."""
    named = [(re.search('title="(.*)"', info), text) for info, text in blocks(page)]
    return {found[1]: text for found, text in named if found}
