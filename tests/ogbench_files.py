"""Small datasets in OGBench's format, and a host that serves files, for tests of what reads them."""

import http.server
import io
import threading

import numpy as np


def rows(n=40, **changed):
    """Returns the fields of four episodes of ten rows; a field that is changed to None is left out."""
    generator = np.random.default_rng(0)
    terminals = np.zeros(n, bool)
    terminals[9::10] = True
    data = {
        "observations": generator.normal(size=(n, 2)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (n, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": generator.normal(size=(n, 2)).astype(np.float32),
    }
    return {field: array for field, array in (data | changed).items() if array is not None}


def packed(**changed):
    """Returns the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **rows(**changed))
    return buffer.getvalue()


def with_value(field, row, value):
    """Returns one field of which one row has another value, as float64."""
    array = rows()[field].astype(np.float64)
    array[row] = value
    return {field: array}


class Host:
    """A web server on this machine: what it holds, how it behaves, what it was asked."""

    def __init__(self):
        self.body = packed()
        self.etag = '"one"'
        self.ranges = True
        self.kind = "application/octet-stream"
        self.cut = None  # the connection ends after so many bytes
        self.status = 200
        self.lie = False  # answers with another range than was asked for
        self.asked = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def _handler(host):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
                start, status = 0, host.status
                if host.ranges and "Range" in self.headers and self.headers["If-Range"] == host.etag:
                    start, status = int(self.headers["Range"][len("bytes=") : -1]), 206
                    status = 416 if start >= len(host.body) else 206
                body = host.body[start:] if status in (200, 206) else b"no"
                self.send_response(status)
                self.send_header("Content-Type", host.kind)
                self.send_header("Content-Length", str(len(body)))
                if host.etag:
                    self.send_header("ETag", host.etag)
                if status == 206:
                    first = start - 1 if host.lie else start
                    self.send_header("Content-Range", f"bytes {first}-{len(host.body) - 1}/{len(host.body)}")
                self.end_headers()
                self.wfile.write(body[: host.cut])

            def log_message(self, *_):
                pass

        return Handler

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
