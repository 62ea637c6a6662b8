"""Configuration of Sphinx. Build with: tox -e lint, or sphinx-build -W docs docs/_build."""

from importlib.metadata import version as installed_version

project = "msgbus"
author = "The msgbus authors"
project_copyright = author
release = version = installed_version("msgbus")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

# Links to a heading of a page: #what-it-says
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"msgbus {release}"
