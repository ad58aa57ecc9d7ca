"""`python -m genvid.cli`: how accelerate launches the command in several processes."""

from genvid.cli import main

if __name__ == "__main__":
    main()
