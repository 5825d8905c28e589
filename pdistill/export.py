"""`python -m pdistill.export`: see `pdistill.cli.export`."""

from pdistill.cli.export import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
