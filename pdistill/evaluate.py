"""`python -m pdistill.evaluate`: see `pdistill.cli.evaluate`."""

from pdistill.cli.evaluate import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
