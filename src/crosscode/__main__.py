"""`python -m crosscode`."""

from crosscode.commands import main

if __name__ == "__main__":
    main()
