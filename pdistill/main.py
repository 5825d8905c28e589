"""`python -m pdistill.main --config=... --workdir=...`, the same as `pdistill train`."""

import sys

from pdistill.__main__ import train

if __name__ == "__main__":
    train(sys.argv[1:])
