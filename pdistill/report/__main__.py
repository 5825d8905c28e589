"""`python -m pdistill.report`: see `pdistill.cli.report`."""

from pdistill.cli.report import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
