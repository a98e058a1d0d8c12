import ast
import inspect
import re
from pathlib import Path

import pytest
import tensorflow as tf

from kerasdet import keras_compat
from kerasdet.keras_compat import in_xla_context, kernel_devices

ROOT = Path(__file__).resolve().parents[1]
WRAPPERS = [
    item
    for name, item in vars(keras_compat).items()
    if not name.startswith("_") and getattr(item, "__module__", "") == keras_compat.__name__
]
SOURCES = [path for folder in ("kerasdet", "export") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda item: item.__name__)
def test_wrapper_names_what_it_uses_and_versions_that_have_it(wrapper):
    text = " ".join(inspect.getdoc(wrapper).split())
    assert re.search(r"Seen in (TensorFlow|Keras) \d+\.\d+\.\d+", text)
    assert "private" in text or "undocumented" in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_keras_compat_imports_private_modules(path):
    if path.name == "keras_compat.py":
        return
    private = re.compile(r"tensorflow\.(python|lite\.python|lite\.tools)|keras\.src")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if private.match(name)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_xla_context_is_that_of_the_traced_function(jit_compile):
    seen = []

    @tf.function(jit_compile=jit_compile)
    def function(x):
        seen.append(in_xla_context())
        inner = tf.function(lambda x: seen.append(in_xla_context()) or x)
        return inner(x)

    function.get_concrete_function(tf.TensorSpec([], tf.float32))
    assert seen == [jit_compile] * 2
    assert not in_xla_context()


def test_kernel_devices_of_stock_and_unknown_ops():
    assert {"CPU"} <= kernel_devices("AddV2")
    assert kernel_devices("NoSuchOp") == set()
