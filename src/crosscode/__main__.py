"""`python -m crosscode`."""

from crosscode.cli import main

if __name__ == "__main__":
    main()
