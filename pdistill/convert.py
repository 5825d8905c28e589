"""`python -m pdistill.convert`, the same as `pdistill convert`."""

import functools

from pdistill.__main__ import run

main = functools.partial(run, "convert")

if __name__ == "__main__":
    main(program=True)
