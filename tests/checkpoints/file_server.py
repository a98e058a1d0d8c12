"""A real HTTP server on loopback that misbehaves as asked: cuts, stalls, redirects, refuses, ignores ranges."""

import base64
import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves bytes by path.

    Attributes:
        files: Path without the leading slash -> contents.
        requests: (path, headers) of every request so far.
        etag: Version that the server tells; None for no validator at all.
        ranges: Whether it answers requests for a part.
        cuts: For each further response the number of bytes after which the connection breaks; None for no break.
        stalls: For each further response the number of bytes after which nothing more comes; None for no stall.
        statuses: For each further response an error code to answer with, or (code, reason); None for the file.
        redirects: Path -> address that it redirects to, with `redirect_code`.
        chunked: Whether it tells no length.
        excess: Number of bytes by which the length that it tells is too large.
        credentials: "user:password" that it asks for, or None.
    """

    def __init__(self):
        self.files, self.requests, self.redirects = {}, [], {}
        self.cuts, self.stalls, self.statuses = [], [], []
        self.etag, self.ranges, self.chunked, self.credentials, self.redirect_code = '"v1"', True, False, None, 302
        self.excess = 0
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    outer._answer(self)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def ranges_asked(self):
        return [headers.get("Range") for _, headers in self.requests]

    def _answer(self, handler):
        path = handler.path.lstrip("/")
        self.requests.append((path, dict(handler.headers)))
        status = self.statuses.pop(0) if self.statuses else None
        if self.credentials:
            wanted = "Basic " + base64.b64encode(self.credentials.encode()).decode()
            status = status or (None if handler.headers.get("Authorization") == wanted else 401)
        if path in self.redirects:
            handler.send_response(self.redirect_code)
            handler.send_header("Location", self.redirects[path])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif status or path not in self.files:
            handler.send_error(*(status if isinstance(status, tuple) else (status or 404,)))
        else:
            self._send(handler, self.files[path])

    def _send(self, handler, data):
        asked = handler.headers.get("Range") if self.ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if handler.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        if start >= len(data) > 0:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(data) - start + self.excess))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        stall = self.stalls.pop(0) if self.stalls else None
        sent = data[start:][: min(x for x in (cut, stall, len(data)) if x is not None)]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if self.chunked else sent)
        handler.wfile.flush()
        if stall is not None:
            self._released.wait(20)
        if cut is not None or stall is not None or self.excess:
            handler.close_connection = True
        elif self.chunked:
            handler.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def serving():
    server = FileServer()
    try:
        yield server
    finally:
        server.close()


def wait_until(condition, seconds=20.0):
    """Waits for a condition of another process or thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
