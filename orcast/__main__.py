"""`python -m orcast` is the command `orcast`."""

from orcast.cli import main

if __name__ == "__main__":
    main()
