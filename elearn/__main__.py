"""``python -m elearn`` is the ``elearn`` command."""

from elearn.cli.main import main

if __name__ == "__main__":
    main()
