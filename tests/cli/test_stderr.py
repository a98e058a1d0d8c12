import os

import pytest

from kerasdet.cli.stderr import hidden_stderr


def test_lines_of_libraries_are_hidden_unless_the_block_raises(capfd):
    with hidden_stderr():
        os.write(2, b"from C++")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
    with pytest.raises(ImportError), hidden_stderr():
        os.write(2, b"from C++")
        raise ImportError
    assert capfd.readouterr().err == "from C++"
