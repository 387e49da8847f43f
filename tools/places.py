"""Where things are."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("SANDHOST_RUN_CACHE") or ROOT / ".cache").absolute()
CONSTRAINTS = ROOT / "constraints.txt"
