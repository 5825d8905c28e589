"""`python -m pdistill.pairs`, the same as `pdistill pairs`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "pairs")

if __name__ == "__main__":
    main(program=True)
