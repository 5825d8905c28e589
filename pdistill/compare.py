"""`python -m pdistill.compare`, the same as `pdistill compare`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "compare")

if __name__ == "__main__":
    main(program=True)
