"""Tests downloads against a real HTTP server on loopback that cuts, stalls, redirects and refuses."""

import hashlib
import os
import random
import signal
import socket

import pytest
import tiny
from file_server import serving, wait_until

from kerasdet.checkpoints import download as module
from kerasdet.checkpoints.download import download
from kerasdet.errors import UserError

DATA = random.Random(0).randbytes(3_000_000)
SHA = ("sha256", hashlib.sha256(DATA).hexdigest()[:8])


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(module, "TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    with serving() as server:
        server.files["models/a.pth"] = DATA
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "a.pth"


def fetch(server, path, digest=SHA):
    download(f"{server.url}/models/a.pth", path, digest)


def message(server, path, digest=SHA):
    with pytest.raises(UserError) as error:
        fetch(server, path, digest)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "a.pth" in text
    assert not path.exists()
    return text


def assert_complete(path):
    assert path.read_bytes() == DATA
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("digest", [SHA, ("md5", hashlib.md5(DATA).hexdigest()[:6]), None])
def test_file_arrives_whole(server, path, digest):
    fetch(server, path, digest)
    assert_complete(path)
    assert len(server.requests) == 1


def test_progress_is_shown_in_two_lines_where_there_is_no_terminal(server, path, capsys):
    fetch(server, path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Downloading a.pth (3.0 MB)" and lines[1].startswith("Downloaded 3.0 MB of a.pth in ")


def test_terminal_shows_a_bar(server, path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(server, path)
    last = capsys.readouterr().err.split("\r")[-1]
    assert f"[{'=' * 30}] 100%  3.0 MB of 3.0 MB, " in last and last.endswith("\n")


def test_server_without_length_is_read_to_the_end(server, path):
    server.chunked = True
    fetch(server, path)
    assert_complete(path)


# Cuts


def test_cut_connections_are_resumed(server, path):
    server.cuts = [1_000_000, 5, 1_200_000]
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked() == [None, "bytes=1000000-", "bytes=1000005-", "bytes=2200005-"]
    assert server.requests[1][1]["If-Range"] == '"v1"'


def test_many_cuts_are_no_failure_if_each_try_brings_a_lot(server, path):
    server.files["models/a.pth"] = data = DATA * 3
    server.cuts = [module._ENOUGH] * 8
    fetch(server, path, ("sha256", hashlib.sha256(data).hexdigest()[:8]))
    assert path.read_bytes() == data and len(server.requests) == 9


def test_cut_chunked_transfer_is_resumed(server, path):
    server.chunked, server.cuts = True, [700_000]
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked() == [None, "bytes=700000-"]


def test_wrong_length_does_not_download_for_ever(server, path):
    server.excess = 7
    text = message(server, path)
    assert "4 tries failed" in text and len(server.requests) <= 8


def test_stalled_connection_is_resumed(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.stalls = [900_000]
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked() == [None, "bytes=900000-"]


def test_endless_cuts_end_with_a_message_and_a_later_call_goes_on(server, path):
    server.cuts = [1000] * 4
    text = message(server, path)
    assert "failed (4,000 of 3,000,000 bytes received); 4 tries failed, and 4,000 bytes are kept in " in text
    assert "a.pth.partial. Try again later (the download then continues with the missing bytes), set KERASDET" in text
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked()[-1] == "bytes=4000-"


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
def test_server_that_cannot_resume_sends_everything_again(server, path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cuts = [1_000_000]
    fetch(server, path)
    assert_complete(path)
    assert len(server.requests) == 2


def test_file_that_changed_since_the_cut_is_fetched_anew(server, path):
    server.files["models/a.pth"] = bytes(len(DATA))
    server.cuts = [1000] * 4
    message(server, path)
    server.files["models/a.pth"], server.etag = DATA, '"v2"'
    fetch(server, path)
    assert_complete(path)


def test_part_of_another_file_is_found_by_the_hash_and_fetched_anew(server, path):
    """A server whose version does not change with the contents."""
    server.files["models/a.pth"] = bytes(len(DATA))
    server.cuts = [1000] * 4
    message(server, path)
    server.files["models/a.pth"] = DATA
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked()[-2:] == ["bytes=4000-", None]


def test_part_of_another_address_is_not_completed(server, path):
    server.cuts = [1000] * 4
    message(server, path)
    server.files["other/a.pth"] = DATA
    download(f"{server.url}/other/a.pth", path, SHA)
    assert_complete(path)
    assert server.ranges_asked()[-1] is None


@pytest.mark.parametrize("received", [1_500_000, len(DATA)])
def test_killed_download_is_resumed(server, path, received):
    """The process is killed in the middle, and after the last byte but before the file has its name."""
    server.stalls = [received]
    process = os.fork()
    if not process:
        if received == len(DATA):
            rename = os.replace
            os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL) if paths[1] == path else rename(*paths)
            server.stalls = []
        fetch(server, path)
        os._exit(1)
    partial = path.with_name("a.pth.partial")
    if received < len(DATA):
        wait_until(lambda: partial.exists() and partial.stat().st_size == received)
        os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert not path.exists()
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked() == [None, f"bytes={received}-"][: 2 if received < len(DATA) else 1]


# Redirects and credentials


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects_are_followed_also_for_the_rest_of_a_file(server, path, code):
    server.redirect_code = code
    server.redirects["models/a.pth"] = f"{server.url}/elsewhere/a.pth"
    server.files["elsewhere/a.pth"] = DATA
    server.cuts = [1_000_000]
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked() == [None, None, "bytes=1000000-", "bytes=1000000-"]


def test_endless_redirects_raise(server, path):
    server.redirects["models/a.pth"] = f"{server.url}/models/a.pth"
    assert "answers 302" in message(server, path)


def test_user_and_password_are_sent_to_their_host_only(server, path):
    server.credentials = "ann:s3/cr@et"
    assert "answers 401 (Unauthorized). Set KERASDET_MIRROR with a user and a password" in message(server, path)
    url = f"{server.url}/models/a.pth".replace("//", "//ann:s3%2Fcr@et@")
    with serving() as other:
        other.files["b.pth"] = DATA
        server.redirects["models/a.pth"] = f"{other.url}/b.pth"
        download(url, path, SHA)
        assert_complete(path)
        assert "Authorization" not in other.requests[0][1]
    path.unlink()
    server.redirects, server.statuses = {}, [403]
    with pytest.raises(UserError, match=rf"^{server.url}/models/a\.pth answers 403") as error:
        download(url, path, SHA)
    assert "s3" not in str(error.value)


# Refusals


def test_wrong_hash_names_both_and_leaves_nothing(server, path):
    text = message(server, path, ("sha256", "0badc0de"))
    assert f"the SHA256 of its 3,000,000 bytes begins with {SHA[1]}" in text and "expected 0badc0de." in text
    assert not path.with_name("a.pth.partial").exists()


def test_missing_file_raises_at_once(server, path):
    server.files.clear()
    assert "answers 404 (Not Found). The server does not have the file: add it to" in message(server, path)
    assert len(server.requests) == 1


def test_code_without_a_reason_raises_its_message(server, path):
    server.statuses = [(403, "")]
    assert "answers 403. Set KERASDET_MIRROR" in message(server, path)


def test_busy_server_is_asked_again(server, path):
    server.statuses = [503, 429, None]
    fetch(server, path)
    assert_complete(path)


def test_server_that_stays_busy_raises(server, path):
    server.statuses = [503] * 4
    assert "answers 503 (Service Unavailable); 4 tries failed. Try again later, set KERASDET_MIRROR" in message(
        server, path
    )


def test_silent_server_raises(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    server.stalls = [0] * 4
    text = message(server, path)
    assert "cannot be reached (no data received for 0.1 s); 4 tries failed. Try again later, set" in text


def test_unreachable_server_raises_at_once(path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(
            UserError, match=r"a\.pth cannot be reached \(Connection refused\)\. Connect to the internet"
        ):
            download(f"http://127.0.0.1:{port}/a.pth", path)


@pytest.mark.parametrize("name", ["models/a b/ü.pth", "models/a%20b/%C3%BC.pth"])
def test_letters_of_a_path_are_encoded_once(server, path, name):
    server.files["models/a%20b/%C3%BC.pth"] = DATA
    download(f"{server.url}/{name}", path, SHA)
    assert_complete(path)


@pytest.mark.parametrize(
    "url", ["gopher://a/b.pth", "http://127.0.0.1:port/b.pth", "http:///b.pth", "http://[::1/b.pth"]
)
def test_address_that_is_none_raises(path, url):
    with pytest.raises(UserError, match=r"b\.pth cannot be reached \(.+\)\. Connect"):
        download(url, path)


# The disk


def test_too_little_space_is_noticed_before_the_transfer(server, path, monkeypatch):
    usage = module.shutil.disk_usage(path.parents[1])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1_000_000))
    text = message(server, path)
    assert "has 1 MB free, but a.pth needs 3 MB: free some space, or set KERASDET_HOME" in text
    assert not path.with_name("a.pth.partial").exists()


def test_disk_that_fills_up_keeps_what_came(server, path):
    with tiny.disk(1_500_000):
        assert "a.pth.partial cannot be written: File too large. Free some space" in message(server, path)
    fetch(server, path)
    assert_complete(path)
    assert server.ranges_asked()[-1] == "bytes=1500000-"


def test_folder_that_cannot_be_made_raises(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.pth cannot be written: Not a directory\. .* KERASDET_HOME"):
        fetch(server, tmp_path / "file" / "x" / "a.pth")


def test_folder_serves_like_a_server(tmp_path, path):
    (tmp_path / "source.pth").write_bytes(DATA)
    download((tmp_path / "source.pth").as_uri(), path, SHA)
    assert_complete(path)
    with pytest.raises(UserError, match=r"none\.pth cannot be reached \(No such file or directory"):
        download((tmp_path / "none.pth").as_uri(), path, SHA)
