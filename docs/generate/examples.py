"""Shows the examples of docstrings as code.

Google's section is called "Examples"; griffe takes "Example", which kerasdet writes for a single one, for a paragraph
of Markdown, in which ``>>>`` begins a quotation.
"""

import re

import griffe


class Examples(griffe.Extension):
    """Gives the section "Example" of each docstring the name that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Renames the section.

        Args:
            obj: Module, class or function that griffe has read.
        """
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
