"""Downloads of files."""

import http.client
import shutil
import urllib.request
from pathlib import Path

from tqdm import tqdm


def download(url: str, path: Path) -> None:
    """Downloads `url` to `path`, with a progress bar.

    Raises:
      OSError: the address is out of reach.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as output:
            size = int(response.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(response, "read", size, desc=path.name) as reader:
                shutil.copyfileobj(reader, output, 2**20)
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
