"""A Hugging Face Hub on loopback, for tests of everything that publishes or fetches.

    with HubServer() as hub:
        hub.store.add_user("hf_token", "ann", orgs=["lab"])
        env = os.environ | hub.client_environment("hf_token", tmp_path)
        subprocess.run([...], env=env)
        assert hub.uploaded() == ...

It speaks the API that the real clients use, over real sockets, and makes things go wrong on demand
(`answer`, `cut`, `lose_answer`, `hold`, `garble`).
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from hub_server.api import Api, Reply, Request
from hub_server.faults import Fault, Faults, Gate
from hub_server.store import Store

PIECE = 65536


class _CutError(Exception):
    """The connection ends here."""


@dataclasses.dataclass
class Logged:
    """One request that came in: `status` 0 where it was cut off; bytes of the bodies read and sent."""

    method: str
    path: str
    status: int = 0
    received: int = 0
    sent: int = 0
    range: str | None = None
    authorized: bool = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def _serve(self) -> None:
        hub = self.server.hub
        split = urlsplit(self.path)
        logged = Logged(self.command, split.path, authorized="Authorization" in self.headers)
        logged.range = self.headers.get("Range")
        hub.log.append(logged)
        fault = hub.faults.next_for(self.command, split.path)
        try:
            stop = fault if fault and self.command in ("PUT", "POST", "DELETE") else None
            body = self._read_body(logged, stop)
            if fault and fault.status is not None:
                reply = Reply(fault.status, b'{"error": "planned"}', {"Content-Type": "application/json"})
                reply.headers |= fault.headers
            else:
                query = parse_qs(split.query, keep_blank_values=True)
                request = Request(self.command, split.path, query, self.headers, body)
                reply = hub.api.handle(request)
            if fault and fault.lost:
                raise _CutError
            self._send(reply, logged, None if stop else fault)
        except (_CutError, ConnectionError, TimeoutError):
            self.close_connection = True
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                # The client is gone.
                return

    def _read_body(self, logged: Logged, fault: Fault | None) -> bytes:
        chunks: list[bytes] = []
        limit = fault.cut if fault and (fault.cut is not None) else None
        if limit == 0:
            self._stop(fault)
        for piece in self._pieces():
            chunks.append(piece)
            logged.received += len(piece)
            if limit is not None and logged.received >= limit:
                self._stop(fault)
                limit = None
        return b"".join(chunks)

    def _pieces(self):  # type: ignore[no-untyped-def]
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self._exactly(min(PIECE, left))
            left -= len(piece)
            yield piece

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise _CutError
        return data

    def _stop(self, fault: Fault | None) -> None:
        assert fault is not None
        if fault.gate is None:
            raise _CutError
        fault.gate.pass_through()

    def _send(self, reply: Reply, logged: Logged, fault: Fault | None) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.flush()
        logged.status = reply.status
        if self.command == "HEAD":
            return
        body = reply.body
        if fault and fault.garble:
            body = bytes(255 - byte for byte in body)
        limit = fault.cut if fault else None
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            if limit is not None and logged.sent + len(piece) > limit:
                first = piece[: limit - logged.sent]
                self.wfile.write(first)
                self.wfile.flush()
                logged.sent += len(first)
                piece, limit = piece[len(first) :], None
                self._stop(fault)
            self.wfile.write(piece)
            logged.sent += len(piece)
        self.wfile.flush()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer


class HubServer:
    """The server; a context manager.

    Attributes:
        store: What it keeps; add users there.
        api: Its settings: `tree_page`, `part_bytes`.
        log: Every request so far, in order of arrival.
        url: Its address, for `HF_ENDPOINT`.
    """

    def __init__(self) -> None:
        self.store, self.faults, self.log = Store(), Faults(), list[Logged]()
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.hub = self
        port = self._listener.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.api = Api(self.store, self.url, f"http://localhost:{port}")
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the port: from now on nobody is there."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def client_environment(self, token: str | None, home: Path) -> dict[str, str]:
        """Environment variables with which a subprocess uses this Hub, and caches of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    # What goes wrong

    def answer(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Answers the next `times` requests with an error status; `retry_after` becomes `Retry-After`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.plan(method, path, status=status, times=times, headers=named)

    def cut(self, method: str, path: str, after: int = 0, times: int = 1) -> None:
        """Closes the connection after that many bytes of the body sent up (PUT, POST) or down (GET)."""
        self.faults.plan(method, path, cut=after, times=times)

    def lose_answer(self, method: str, path: str, times: int = 1) -> None:
        """Does what is asked, and closes the connection instead of saying so."""
        self.faults.plan(method, path, lost=True, times=times)

    def garble(self, method: str, path: str, times: int = 1) -> None:
        """Sends other bytes, as many as announced."""
        self.faults.plan(method, path, garble=True, times=times)

    def hold(self, method: str, path: str, after: int = 0) -> Gate:
        """Stops the next such request where `cut` would cut it, until the returned gate is opened."""
        gate = Gate()
        self.faults.plan(method, path, cut=after, gate=gate)
        return gate

    # What happened

    def requests(self, method: str, part: str) -> list[Logged]:
        """Requests of that method whose path contains `part`."""
        return [logged for logged in self.log if logged.method == method and part in logged.path]

    def uploaded(self) -> Counter[str]:
        """How many times the content of each large file, by sha256, was sent up completely."""
        done = [logged.path for logged in self.requests("PUT", "/lfs/") if logged.status == 200]
        return Counter(path.split("/")[2] for path in done if "/part/" not in path)
