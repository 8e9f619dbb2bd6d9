"""The code in the tutorials of the documentation."""

import re

from helpers.paths import ROOT


def blocks(page, language='python'):
    """Each block of a tutorial in ``language``."""
    text = (ROOT / 'docs' / 'tutorials' / page).read_text()
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
