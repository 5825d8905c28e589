"""`python -m pdistill.compare`: see `pdistill.cli.compare`."""

from pdistill.cli.compare import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
