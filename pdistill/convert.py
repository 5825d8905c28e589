"""`python -m pdistill.convert`: see `pdistill.cli.convert`."""

from pdistill.cli.convert import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
