"""`python -m pdistill.main --config=... --workdir=...`, the same as `pdistill train`."""

from pdistill.__main__ import run

if __name__ == "__main__":
    run("train", program=True)
