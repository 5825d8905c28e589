"""Puts benchmarks/results, to which pages link, into the site.

On GitHub a page's `../benchmarks/results/...` is the file itself; in the site these files lie below
its root, a folder less far up.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

RESULTS = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    root = Path(config.config_file_path).parent
    for path in sorted((root / RESULTS).rglob("*")):
        if path.suffix in (".png", ".json", ".jsonl", ".txt", ".md"):
            name, site = str(path.relative_to(root)), (config.site_dir, config.use_directory_urls)
            unlisted = InclusionLevel.NOT_IN_NAV  # tables in Markdown become pages
            files.append(File(name, str(root), *site, inclusion=unlisted))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(rf"\]\(\.\./((?:\.\./)*{RESULTS}/)", r"](\1", markdown)
