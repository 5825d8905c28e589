"""`python -m pdistill.sample`, the same as `pdistill sample`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "sample")

if __name__ == "__main__":
    main(program=True)
