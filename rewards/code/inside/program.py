"""Runs a program that reads standard input and writes standard output. Runs inside the sandbox.

``program.py FOLDER LIMITS``: sends "compiled" to descriptor 3 once the program compiles, closes it, and runs
the program as `__main__`. The program then has what a program has, and no channel to the scorer.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SourceFileLoader


def main() -> None:
    """Compile, tell, run."""
    folder, words = sys.argv[1], sys.argv[2]
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    import limits  # type: ignore[import-not-found]

    limits.apply(words)
    sys.path.remove(here)
    path = os.path.join(folder, "main.py")
    with open(path, "rb") as file:
        compile(file.read(), "main.py", "exec", dont_inherit=True)
    os.write(3, b"compiled\n")
    os.close(3)
    sys.argv[:] = [path]
    sys.modules["__main__"] = module = type(sys)("__main__")
    SourceFileLoader("__main__", path).exec_module(module)


if __name__ == "__main__":
    main()
