import os
import subprocess
import sys
from pathlib import Path

import pytest

from kerasdet.export.tflite import native_log
from kerasdet.export.tflite.native_log import without_delegate_line


def test_everything_but_the_delegates_line_is_written(capfd):
    with pytest.raises(ValueError), without_delegate_line():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: tensor 7 is missing\n")
        raise ValueError
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "ERROR: tensor 7 is missing\nafterwards\n"


def test_litert_writes_its_line_when_it_allocates_tensors(tflite_file):
    """LiteRT writes the line once in a process, so a new one must show that the block contains it."""
    pytest.importorskip("ai_edge_litert")
    code = (
        f"exec(open({str(Path(native_log.__file__))!r}).read())\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "import numpy as np\n"
        "with without_delegate_line():\n"
        f"    interpreter = Interpreter({str(tflite_file('tiny'))!r})\n"
        "    interpreter.allocate_tensors()\n"
        "interpreter.get_signature_runner()(image=np.zeros([1, 64, 64, 3], np.float32))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
