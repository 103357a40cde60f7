"""``python -m resnext_det``: what is installed here, and what would fix it; ``--self-test`` tries it."""

from .cli import main

if __name__ == "__main__":
    main("doctor")
