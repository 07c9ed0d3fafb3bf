"""Measure what works on each family of models and write the table of docs/any-model.md: `python docs/families.py`.

The tests measure the same, model by model, and fail where the page says something else.
"""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

# Before torch is imported: the many small calls of small models lose most of their time where threads wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of diffusers, about names that it will change
    families = import_module("modules.families")
    families.write_table()
    print(f"{len(families.page_rows())} rows written")
