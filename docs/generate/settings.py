"""Writes the configuration reference: every gin key with type, default and description, from docstrings."""

import inspect
import re
from collections.abc import Callable, Iterator

from kerasdet import config

_SECTIONS = (
    "Returns:",
    "Raises:",
    "Example:",
    "Examples:",
    "Attributes:",
    "References:",
    "Reference:",
    "Notes:",
    "Note:",
)


def argument_descriptions(docstring: str) -> dict[str, str]:
    """Reads the ``Args:`` section of a Google docstring.

    Args:
        docstring: The docstring, with its indentation removed.

    Returns:
        The description of each argument on one line. Arguments that share a line, ``y, x: ...``, share it.
    """
    _, found, rest = docstring.partition("Args:\n")
    if not found:
        return {}
    entries, names = {}, []
    for line in rest.splitlines():
        if line.strip() in _SECTIONS or (line.strip() and not line.startswith(" ")):
            break
        if start := re.match(r" {4}`?([*\w, ]+?)`?: (.*)$", line):
            names = [name.strip(" *") for name in start[1].split(",")]
            entries.update(dict.fromkeys(names, start[2].strip()))
        elif line.strip():
            entries.update({name: f"{entries[name]} {line.strip()}" for name in names})
    return entries


def describe_arguments(item: Callable) -> Iterator[tuple[str, str, str, str]]:
    """Yields (name, type, default, description) of every argument of a configurable that gin can bind.

    Args:
        item: A class or function in `kerasdet.config.SURFACE`.
    """
    owners = list(inspect.getmro(item)[:-1]) if isinstance(item, type) else [item]
    described, parameters = {}, {}
    for owner in reversed(owners):  # a class describes its arguments better than its bases
        described |= argument_descriptions(inspect.getdoc(owner) or "") if owner.__doc__ else {}
        has_own = not isinstance(owner, type) or "__init__" in vars(owner)
        parameters |= dict(inspect.signature(owner).parameters) if has_own else {}
    for name in config.ARGUMENTS[item.__name__]:
        parameter = parameters[name]
        required = parameter.default is parameter.empty
        default = "required" if required else f"`{_default(parameter.default)}`"
        yield name, _type(parameter), default, described.get(name, "")


def _default(value):
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def _type(parameter):
    if parameter.annotation is parameter.empty:
        return ""
    text = inspect.formatannotation(parameter.annotation)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def surface() -> str:
    """Returns Markdown about every configurable: a heading, the purpose, and a table of its arguments."""
    parts = []
    for item in config.SURFACE:
        summary = (inspect.getdoc(item) or "").partition("\n\n")[0].replace("\n", " ")
        rows = [
            f"| `{item.__name__}.{name}` | {kind and f'`{kind}`'} | {default} | {_cell(text)} |"
            for name, kind, default, text in describe_arguments(item)
        ]
        table = "\n".join(["| key | type | default | description |", "|---|---|---|---|", *rows])
        parts.append(f"### {item.__name__}\n\n{_cell(summary)}\n\n{table}")
    return "\n\n".join(parts)


def recipes() -> str:
    """Returns a table of the recipes in the package, with the text at their head."""
    rows = []
    for path in sorted(config.GIN_CONFIGS.glob("*.gin")):
        head = re.match(r"(?:#.*\n)*", path.read_text())[0].replace("#", "").strip()
        command, rest = re.match(r"(kerasdet \S.*?)(?: {3,}|\n|$)(.*)", head, re.DOTALL).groups()
        rest = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", _cell(" ".join(rest.split())))
        rows.append(f"| `{path.stem}` | `{command}`<br>{rest} |")
    return "\n".join(["| recipe | command, hardware and measured AP |", "|---|---|", *rows])


def _cell(text):
    """Returns text for a cell of a table: pipes and brackets outside of code are no markup; `` becomes `."""
    parts = text.replace("``", "`").split("`")
    parts[::2] = [part.replace("|", r"\|").replace("<", "&lt;").replace("[", r"\[") for part in parts[::2]]
    return "`".join(parts)
