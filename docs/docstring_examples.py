"""Show the doctests of the package's docstrings as code.

Griffe reads a doctest where the heading is "Examples:", and takes "Example:", which stands in our docstrings, for a box
of Markdown. This extension of it hands the one heading over as the other.
"""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Rewrite the heading of every docstring that is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the text that griffe will parse."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
