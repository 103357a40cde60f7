from __future__ import annotations

import sys
from pathlib import Path

# `from helpers import ...` in this folder's tests
sys.path.insert(0, str(Path(__file__).parent))
