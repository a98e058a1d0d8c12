"""Build script: everything static is in pyproject.toml; the package layout and the compiled ops need code.

The ops are compiled where there is a compiler and `KERASDET_BUILD_OPS` is not 0; without them kerasdet runs on
TensorFlow's own. A wheel fits every Python 3 and every TensorFlow: the library knows neither.
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
    """Leaves the building to custom_ops/Makefile, and the ops out where they do not compile."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext):
        library, build = (os.path.abspath(path) for path in (self.get_ext_fullpath(ext.name), self.build_temp))
        os.makedirs(os.path.dirname(library), exist_ok=True)
        made = subprocess.run(
            ["make", "-C", SOURCES, f"LIBRARY={library}", f"BUILD={build}", f"PYTHON={sys.executable}"]
        )
        if made.returncode != 0:
            print("kerasdet: its ops did not compile, so those of TensorFlow will be used.", file=sys.stderr)


class Wheel(bdist_wheel):
    """Names the platform as it is: no version of Python, and any glibc from 2.17 on."""

    def get_tag(self):
        tag = super().get_tag()[2]
        return "py3", "none", tag.replace("linux_", "manylinux2014_", 1) if platform.libc_ver()[0] == "glibc" else tag


def extensions():
    """The compiled ops as setuptools sees them, if they are to be built."""
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
        "kerasdet.export.saved_model",
        "kerasdet.export.saved_model.serving",
        "kerasdet.export.tflite",
        "kerasdet.gin_configs",
    ],
    package_dir={"kerasdet.export": "export", "kerasdet.gin_configs": "gin_configs"},
    package_data={
        "kerasdet.export": ["cpp/*"],
        "kerasdet.export.saved_model.serving": ["templates/*"],
        "kerasdet.export.tflite": ["examples/*"],
        "kerasdet.gin_configs": ["*.gin", "*/*.gin"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOps} | ({"bdist_wheel": Wheel} if extensions() else {}),
)
