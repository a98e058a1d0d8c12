"""Reads pages that lie at the top of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def changelog() -> str:
    """Returns CHANGELOG.md with its links as seen from docs/."""
    return _read("CHANGELOG.md")


def contributing() -> str:
    """Returns CONTRIBUTING.md with its links as seen from docs/."""
    return _read("CONTRIBUTING.md")


def _read(name):
    return (ROOT / name).read_text().replace("](docs/", "](")
