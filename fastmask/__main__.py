"""python -m fastmask."""

from fastmask.cli import main

if __name__ == "__main__":
    main()
