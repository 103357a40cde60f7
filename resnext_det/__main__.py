"""``python -m resnext_det``: what is installed here, and what would mend it."""

from .doctor import main

main()
