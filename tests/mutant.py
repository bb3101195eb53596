"""A pytest plugin that puts another source in place of one module's; see mutants.py."""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

NAME, FILE = os.environ["MUTANT_MODULE"], Path(os.environ["MUTANT_FILE"])


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        return importlib.util.spec_from_file_location(fullname, FILE) if fullname == NAME else None


sys.meta_path.insert(0, _Finder())
