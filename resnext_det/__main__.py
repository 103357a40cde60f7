"""``python -m resnext_det``: what is installed here, and what would mend it; ``--self-test`` tries it."""

from .doctor import main
from .engine.cli import run

run(main)
