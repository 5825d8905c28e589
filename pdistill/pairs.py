"""`python -m pdistill.pairs`: see `pdistill.cli.pairs`."""

from pdistill.cli.pairs import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
