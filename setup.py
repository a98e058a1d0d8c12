"""Build script: everything static is in pyproject.toml; only the package layout needs code."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["kerasdet", "kerasdet.*"]),
        "kerasdet.export",
        "kerasdet.export.serving",
        "kerasdet.gin_configs",
    ],
    package_dir={"kerasdet.export": "export", "kerasdet.gin_configs": "gin_configs"},
    package_data={
        "kerasdet.export": ["cpp/*"],
        "kerasdet.export.serving": ["kit/*"],
        "kerasdet.gin_configs": ["*.gin", "*/*.gin"],
    },
)
