"""``python -m resnext_det``: what is installed here, and what would mend it."""

import sys

from .doctor import main

sys.exit(main())
