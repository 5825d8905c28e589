"""`python -m pdistill.average`, the same as `pdistill average`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "average")

if __name__ == "__main__":
    main(program=True)
