import contextlib
import subprocess
import sys

import pytest
import tiny

from kerasdet.training.files import locked, replacing, writing

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_was_there_stays_where_a_disk_is_full(tmp_path):
    path = tmp_path / "config.gin"
    with replacing(path) as partial:
        partial.write_text("a" * 5000)
    message = rf"{path} cannot be written: File too large\. What was saved before is untouched\."
    with pytest.raises(OSError, match=message), tiny.disk(4096), replacing(path) as partial:
        partial.write_text("b" * 9000)
    assert path.read_text() == "a" * 5000
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be written: Is a directory"), writing(tmp_path):
        tmp_path.open("a")
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be written: Is a directory"), replacing(tmp_path) as partial:
        partial.write_text("")


def test_one_process_has_a_folder_until_it_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"{tmp_path} is being trained by another process"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):
            pass
    with contextlib.suppress(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
