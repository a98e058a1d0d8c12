"""Reads pages that lie at the top of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def changelog() -> str:
    """Returns CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text()


def contributing() -> str:
    """Returns CONTRIBUTING.md with its links as seen from docs/."""
    return (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
