"""Settings of the documentation site: ``make docs``."""

import mmscconv

project = 'mmscconv'
author = 'The mmscconv authors'
version = release = mmscconv.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
html_theme = 'furo'
html_title = f'mmscconv {release}'
exclude_patterns = ['_build']

# Links to headings of a page.
myst_heading_anchors = 3

autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_member_order = 'bysource'
napoleon_custom_sections = [('Shape', 'params_style'), 'Shape']
