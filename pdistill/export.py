"""`python -m pdistill.export`, the same as `pdistill export`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "export")

if __name__ == "__main__":
    main(program=True)
