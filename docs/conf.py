"""One site of the pages and the API reference: `make docs` gives Sphinx the repository's root and this file."""

import importlib.metadata

project, author = "resnext_det", "the resnext_det contributors"
release = importlib.metadata.version("resnext-det")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/*.md", "datasets/README.md", "build/api/*.rst"]
root_doc = "README"
html_theme = "furo"
myst_heading_anchors = 3  # as GitHub makes them
autodoc_default_options = {"ignore-module-all": True}  # what a package passes on is described where it stands
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # detectron2's are not ours to format
napoleon_use_ivar = True  # a dataclass's fields are described once
suppress_warnings = ["ref.python"]  # a name that a package passes on is found twice
PAGES = "docs/installing docs/auto datasets/README docs/pretraining docs/detection docs/evaluation docs/training_safety"
MORE = "docs/bad_input docs/speed docs/gpu docs/export docs/other_projects MODEL_ZOO"
REFERENCE = "build/api/resnext_det CONTRIBUTING SECURITY CHANGELOG"


def setup(app):
    """The README is the first page, and Sphinx wants there what GitHub would show as code: the order of the others."""

    def add_contents(app, name, source):
        if name == root_doc:
            pages = "\n".join((*PAGES.split(), *MORE.split(), *REFERENCE.split()))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n{pages}\ndocs/*\n```\n"

    app.connect("source-read", add_contents)
