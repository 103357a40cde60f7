"""Build the API reference from the docstrings: python docs/api.py [FOLDER]. It needs pdoc."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path

import resnext_det


def modules() -> list[str]:
    """Every module that users may import; those with a leading underscore are left out, and `python -m`'s."""
    walked = pkgutil.walk_packages(resnext_det.__path__, "resnext_det.")
    return ["resnext_det", *(m.name for m in walked if not any(part.startswith("_") for part in m.name.split(".")))]


def main(folder: str = "build/docs") -> None:
    """Write the pages: one for each module, in Google's docstring format."""
    import pdoc

    pdoc.render.configure(docformat="google", search=True)
    pdoc.pdoc(*modules(), output_directory=Path(folder))
    print(f"{folder}/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
