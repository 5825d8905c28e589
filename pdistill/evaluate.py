"""`python -m pdistill.evaluate`, the same as `pdistill evaluate`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "evaluate")

if __name__ == "__main__":
    main(program=True)
