"""`python -m pdistill.sample`: see `pdistill.cli.sample`."""

from pdistill.cli.sample import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
