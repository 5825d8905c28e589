"""`python -m pdistill.partition`: see `pdistill.cli.partition`."""

from pdistill.cli.partition import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
