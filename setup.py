"""Builds the package: pyproject.toml holds the static metadata, this script the package layout and the compiled ops.

pip compiles the ops if make and g++ are installed and KERASDET_BUILD_OPS is not 0. Without them kerasdet runs on stock
TensorFlow ops. One wheel fits every Python 3 and every supported TensorFlow, because the ops use only TensorFlow's C
API and no Python API.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("custom_ops")


class BuildOps(build_ext):
    """Builds the ops with custom_ops/Makefile; if they do not compile, installs the package without them."""

    def get_ext_filename(self, fullname: str) -> str:
        """Returns the path of a library without the Python version in its name."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Runs make, and warns if it fails."""
        library, build = (os.path.abspath(path) for path in (self.get_ext_fullpath(ext.name), self.build_temp))
        os.makedirs(os.path.dirname(library), exist_ok=True)
        made = subprocess.run(
            ["make", "-C", SOURCES, f"LIBRARY={library}", f"BUILD={build}", f"PYTHON={sys.executable}"]
        )
        if made.returncode != 0:
            print(
                "kerasdet: the ops did not compile, so it uses stock TensorFlow ops. See the compiler's errors above.",
                file=sys.stderr,
            )


class Wheel(bdist_wheel):
    """Tags the wheel for any Python 3 and, on Linux, for glibc 2.17 or newer (manylinux2014)."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tags for Python, its ABI and the platform."""
        tag = super().get_tag()[2]
        return "py3", "none", tag.replace("linux_", "manylinux2014_", 1) if platform.libc_ver()[0] == "glibc" else tag


def extensions() -> list[Extension]:
    """Returns the setuptools extension of the compiled ops, or nothing if they are not to be built."""
    tools = (shutil.which("make"), shutil.which(os.environ.get("CXX", "g++")))
    if os.environ.get("KERASDET_BUILD_OPS") == "0" or sys.platform != "linux" or not all(tools):
        return []
    files = sorted(str(path) for path in SOURCES.glob("**/*") if path.is_file() and "build" not in path.parts)
    sources = [path for path in files if path.endswith(".cc")]
    return [Extension("kerasdet.ops._kerasdet_ops", sources, depends=files, optional=True)]


setup(
    packages=[
        *find_packages(include=["kerasdet", "kerasdet.*"]),
        "kerasdet.export",
        *(f"kerasdet.export.{name}" for name in find_packages("export")),
        "kerasdet.gin_configs",
    ],
    package_dir={"kerasdet.export": "export", "kerasdet.gin_configs": "gin_configs"},
    package_data={
        "kerasdet.checkpoints": ["zoo.txt"],
        "kerasdet.export": ["cpp/*"],
        "kerasdet.export.saved_model.serving": ["templates/*"],
        "kerasdet.export.onnx": ["examples/*"],
        "kerasdet.export.openvino": ["examples/*"],
        "kerasdet.export.tflite": ["examples/*"],
        "kerasdet.gin_configs": ["*.gin", "*/*.gin"],
        "kerasdet.reports": ["assets/*"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOps} | ({"bdist_wheel": Wheel} if extensions() else {}),
)
