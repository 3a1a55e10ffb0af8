"""Hand the package's docstrings to Griffe in the form that it shows best.

* A doctest is shown as code under "Examples:"; our heading is "Example:".
* Lines that hold a formula, or a call, are shown as they stand.
* "a, b: text" among arguments or attributes describes each of them.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ITEMS = ("Args:", "Attributes:")
_FORMULA = re.compile(r"(?!wh)[a-z]\S*( [/+-] \S+)? = \S|\w+: {2,}\S")


class Docstrings(griffe.Extension):
    """Rewrite every docstring that is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the text that Griffe will parse."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = "\n\n".join(_rewritten(part) for part in text.split("\n\n"))


def _rewritten(paragraph: str) -> str:
    heading, _, rest = paragraph.partition("\n")
    if heading in _ITEMS:
        return "\n".join([heading, *_items(rest)])
    if all(_FORMULA.match(line) for line in paragraph.splitlines()):
        return "\n".join(f"    {line}" for line in paragraph.splitlines())
    return paragraph


def _items(text: str) -> Iterator[str]:
    """Yield the items of a section, one a name."""
    for item in re.split(r"\n(?=    \S)", text):
        if match := re.match(r"    (\w+(?:, \w+)+): (.*)", item, re.DOTALL):
            yield from (f"    {name}: {match[2]}" for name in match[1].split(", "))
        else:
            yield item
