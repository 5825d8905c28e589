"""`python -m pdistill.report`, the same as `pdistill report`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "report")

if __name__ == "__main__":
    main(program=True)
