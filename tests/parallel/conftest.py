"""Lets tests here import the modules beside them, as the ranks that they start do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
