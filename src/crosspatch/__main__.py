"""`python -m crosspatch`: the command line."""

from crosspatch.cli import main

if __name__ == "__main__":
    main()
