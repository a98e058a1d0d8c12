import contextlib
import logging
import os
import subprocess
import sys
import threading

import pytest
import tiny

from kerasdet.errors import UserError
from kerasdet.files import locked, replacing, waiting_lock, writing

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_full_disk_leaves_the_old_content(tmp_path):
    path = tmp_path / "config.gin"
    with replacing(path) as partial:
        partial.write_text("a" * 5000)
    message = rf"{path} cannot be written: File too large\. Files that were saved earlier are intact\."
    with pytest.raises(OSError, match=message), tiny.disk(4096), replacing(path) as partial:
        partial.write_text("b" * 9000)
    assert path.read_text() == "a" * 5000
    assert list(tmp_path.iterdir()) == [path]


def test_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(path) as partial:
        partial.write_text("content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_path_that_cannot_be_written_raises(tmp_path):
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be written: Is a directory"), writing(tmp_path):
        tmp_path.open("a")
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be written: Is a directory"), replacing(tmp_path) as partial:
        partial.write_text("")


def test_lock_lasts_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"Another process is training in {tmp_path}"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
        with locked(tmp_path):
            pass
    with contextlib.suppress(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def replace_and_exit_at(path, function, count):
    """Replaces a file in a child process, which exits without cleaning up at a call of an `os` function."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    original, calls = getattr(os, function), iter(range(1, 9))

    def call(*arguments):
        return os._exit(9) if next(calls) == count else original(*arguments)

    setattr(os, function, call)  # in the child only
    with replacing(path) as partial:
        partial.write_text("new")
    os._exit(0)


@pytest.mark.parametrize(
    ("function", "count", "content"), [("fsync", 1, "old"), ("replace", 1, "old"), ("fsync", 2, "new")]
)
def test_file_of_a_killed_process_is_whole(tmp_path, function, count, content):
    path = tmp_path / "file"
    path.write_text("old")
    assert replace_and_exit_at(path, function, count) == 9
    assert path.read_text() == content
    with replacing(path) as partial:
        partial.write_text("newer")
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_waiting_lock_says_so_and_waits(tmp_path, caplog):
    path = tmp_path / "new" / "lock"
    with waiting_lock(path, "another works"):
        pass
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        threading.Timer(0.2, other.stdin.close).start()
        with caplog.at_level(logging.INFO), waiting_lock(path, "another works"):
            assert caplog.messages == ["another works"]
            assert other.wait(5) == 0
