"""`python -m riverval` is the command `riverval`."""

from .cli import main

if __name__ == "__main__":
    main()
