"""`python -m pdistill.partition`, the same as `pdistill partition`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "partition")

if __name__ == "__main__":
    main(program=True)
