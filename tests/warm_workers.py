"""Runs the scripts that verify exports in processes that are started only once: TensorFlow alone starts for seconds.

SavedModels share a process that has TensorFlow; the other formats share one without it. The scripts check that they
imported no more than their runtime.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_LOOP = """
import json, runpy, sys
for line in sys.stdin:
    script, *arguments = json.loads(line)
    try:
        runpy.run_path(script)["main"](*arguments)
        print(json.dumps(""), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
"""


@functools.cache
def _process(has_tensorflow):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", _LOOP], cwd=tempfile.gettempdir(), **pipes)


def run(script, path, folder, *arguments):
    """Does what `kerasdet.export.protocol.run_worker` does."""
    process = _process("saved_model" in Path(script).parts)
    print(json.dumps([str(script), str(path.resolve()), folder, *arguments]), file=process.stdin, flush=True)
    error = json.loads(process.stdout.readline())
    assert not error, error
    with np.load(Path(folder) / "outputs.npz") as outputs:
        return dict(outputs)
