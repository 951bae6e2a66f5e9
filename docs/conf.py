"""The site: ``make docs`` writes it to build/docs. Every warning is an error, a link that leads nowhere among them."""

from __future__ import annotations

from typing import Any

project = "mbrl-bilevel"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
exclude_patterns = ["results/agents/table.md"]

# $...$ is mathematics; headings have the anchors that GitHub gives them.
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

# The reference names what the packages export, and says of each what its docstring says.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def _skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What scikit-learn adds to every estimator is explained there."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-skip-member", _skipped)
