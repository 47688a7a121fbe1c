"""Clients that nobody here has written, through hot restarts. Called by .ci/clients: clients.py PROGRAM"""

import base64
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import records
from wire import PONG, WELCOME, Frames, hello, ping
from world import NAME, PATIENCE, World, until

HERE = os.path.dirname(os.path.abspath(__file__))
# Hot restarts under each client.
RESTARTS = 3


class Tls:
    """TLS by Python's ssl (OpenSSL) between memory and a socket, so that its bytes can be cut and kept."""

    def __init__(self, world, port, protocol="moorline/1", keylog=None, **limits):
        context = ssl.create_default_context(cafile=world.certificate)
        context.set_alpn_protocols([protocol])
        if keylog:
            context.keylog_filename = keylog
        for name, value in limits.items():
            setattr(context, name, value)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbound, self.outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.inbound, self.outbound, server_hostname=NAME)
        self.sent, self.received, self.frames = bytearray(), bytearray(), Frames()

    def take(self):
        """What is to be sent, which the caller sends."""
        out = self.outbound.read()
        self.sent += out
        return out

    def hear(self):
        piece = self.socket.recv(65536)
        assert piece, "the gateway has closed the connection"
        self.received += piece
        self.inbound.write(piece)

    def shake_hands(self, dripping=False):
        while True:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.put(self.take(), dripping)
            if done:
                return self
            self.hear()

    def put(self, out, dripping=False):
        for at in range(0, len(out), 1 if dripping else max(len(out), 1)):
            self.socket.sendall(out[at : at + 1] if dripping else out)

    def say(self, plain):
        self.tls.write(plain)
        return self.take()

    def until(self, command, count):
        while self.frames.count(command) < count:
            try:
                self.frames.feed(self.tls.read(65536))
            except ssl.SSLWantReadError:
                self.hear()


def python_byte_by_byte(world):
    """Each record comes byte by byte, and a hot restart is in the middle of one."""
    client = Tls(world, world.ports["tls"]).shake_hands(dripping=True)
    client.put(client.say(hello("drip")), dripping=True)
    client.until(WELCOME, 1)
    for number in range(1, RESTARTS + 1):
        record = client.say(ping())
        for cut in (3, len(record) - 1):  # in its head, and before its last byte
            client.put(record[:cut], dripping=True)
            world.upgrade()
            client.put(record[cut:], dripping=True)
            client.until(PONG, client.frames.count(PONG) + 1)
            record = client.say(ping())
        client.put(record)
        client.until(PONG, 3 * number)
    return f"{3 * RESTARTS} heartbeats over {2 * RESTARTS} hot restarts, {len(client.sent)} bytes one by one"


def python_numbers_of_records(world):
    """Whoever has the secrets opens all records of both directions, by the numbers 0, 1, 2, ..., over hot restarts."""
    keylog = f"{world.folder}/keylog"
    client = Tls(world, world.ports["tls"], keylog=keylog).shake_hands()
    client.put(client.say(hello("open")))
    client.until(WELCOME, 1)
    for number in range(1, 4 * (RESTARTS + 1) + 1):
        client.put(client.say(ping()))
        client.until(PONG, number)
        if number % 4 == 0 and number // 4 <= RESTARTS:
            world.upgrade()
    suite = client.tls.cipher()[0]
    counts = []
    for label, stream in (("SERVER_TRAFFIC_SECRET_0", client.received), ("CLIENT_TRAFFIC_SECRET_0", client.sent)):
        counts.append(records.count_sealed(stream, records.secret_of(keylog, label), suite))
    assert min(counts) > 4 * RESTARTS, counts
    return f"{suite}: {counts[0]} records down and {counts[1]} up, each number once, over {RESTARTS} hot restarts"


def refused(world, protocol="moorline/1", **limits):
    try:
        Tls(world, world.ports["tls"], protocol, **limits).shake_hands()
    except (ssl.SSLError, AssertionError, ConnectionError) as error:
        return str(error)
    raise AssertionError(f"a client with {protocol} {limits} is not refused")


def python_downgrade(world):
    """Older versions and other protocols are refused, and a plain client gets no answer in plain text."""
    old = refused(world, maximum_version=ssl.TLSVersion.TLSv1_2)
    other = refused(world, protocol="h2")
    plain = socket.create_connection(("127.0.0.1", world.ports["tls"]), timeout=PATIENCE)
    plain.sendall(hello("plain"))
    answer = b""
    try:
        while piece := plain.recv(4096):
            answer += piece
    except ConnectionError:
        pass
    assert answer[:1] in (b"", b"\x15"), answer  # nothing, or an alert
    return f"TLS 1.2: {old}; ALPN h2: {other}"


def openssl_early_data(world):
    """A session is resumed, and early data is not taken: it could be sent again by somebody else."""
    kept, early = f"{world.folder}/session", f"{world.folder}/early"
    with open(early, "wb") as file:
        file.write(hello("early"))
    run = ["openssl", "s_client", "-connect", f"127.0.0.1:{world.ports['tls']}", "-servername", NAME]
    run += ["-alpn", "moorline/1", "-CAfile", world.certificate, "-verify_return_error"]

    def talk(*more, until_said):
        child = subprocess.Popen(run + list(more), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = bytearray()
        os.set_blocking(child.stdout.fileno(), False)

        def look():
            said.extend(child.stdout.read() or b"")
            return until_said in said

        try:
            until(f"openssl says {until_said}", look)
        finally:
            child.kill()
            child.wait()
        return said.decode(errors="replace")

    first = talk("-sess_out", kept, until_said=b"Max Early Data: 0")
    world.upgrade()
    second = talk("-sess_in", kept, "-early_data", early, until_said=b"Verify return code: 0")
    assert "Reused, TLSv1.3" in second, second
    assert "Early data was accepted" not in second, second
    return "a ticket of before the hot restart resumes; tickets allow 0 bytes of early data"


def gnutls(world):
    """GnuTLS with each suite."""
    for suite in ("AES-256-GCM", "CHACHA20-POLY1305"):
        priority = f"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{suite}"
        run = ["gnutls-cli", "--alpn", "moorline/1", "--x509cafile", world.certificate, "--priority", priority]
        run += ["--logfile", "/dev/null", "--sni-hostname", NAME, "--verify-hostname", NAME]
        run += ["-p", str(world.ports["tls"]), "127.0.0.1"]
        child = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(child.stdout.fileno(), False)
        said = bytearray()

        def count(command):
            said.extend(child.stdout.read() or b"")
            assert child.poll() is None, f"gnutls-cli ended: {said}"
            # Its own words come before the first frame.
            frames = Frames()
            start = said.find(b"\xa1\x02")
            if start >= 0:
                frames.feed(said[start:])
            return frames.count(command)

        child.stdin.write(hello(f"gnutls-{suite}"))
        child.stdin.flush()
        until("WELCOME", lambda: count(WELCOME) == 1)
        for number in range(1, RESTARTS + 1):
            world.upgrade()
            child.stdin.write(ping())
            child.stdin.flush()
            until("PONG", lambda: count(PONG) == number)
        child.kill()
        child.wait()
    return f"two suites, each over {RESTARTS} hot restarts"


def curl(world):
    """curl asks for a WebSocket over TLS, by HTTP."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    run = ["curl", "-sS", "-i", "-N", "--http1.1", "--tlsv1.3", "--max-time", "2", "--cacert", world.certificate]
    run += ["--connect-to", f"{NAME}:443:127.0.0.1:{world.ports['wss']}"]
    for name, value in (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Protocol", "moorline.v1"),
    ):
        run += ["-H", f"{name}: {value}"]
    said = subprocess.run(run + [f"https://{NAME}/"], capture_output=True).stdout.decode(errors="replace").lower()
    assert said.startswith("http/1.1 101") and "sec-websocket-protocol: moorline.v1" in said, said
    refusal = subprocess.run(run + ["-H", "Origin: https://evil.example", f"https://{NAME}/"], capture_output=True)
    assert refusal.stdout.startswith(b"HTTP/1.1 403"), refusal
    return "101 with the protocol, 403 for another page"


class Page(http.server.BaseHTTPRequestHandler):
    """Serves the page, and hears from it."""

    told = {}

    def log_message(self, *_):
        pass

    def do_GET(self):
        with open(f"{HERE}/page.html", "rb") as file:
            text = file.read()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        Page.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()


def chromium(world):
    """Two people chat in a browser over wss, while the gateway is replaced: no message is lost, no socket closes."""
    profile = f"{world.folder}/profile"
    address = f"{world.origin}/?{world.ports['wss']}"
    run = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    run += [f"--user-data-dir={profile}", "--ignore-certificate-errors", address]
    log = open(f"{world.folder}/chromium.log", "w")
    child = subprocess.Popen(run, stdout=log, stderr=log)
    try:
        def told(name):
            assert child.poll() is None, f"chromium ended, see {log.name}"
            assert not Page.told.get("fault"), Page.told
            return Page.told.get(name, 0)

        for _ in range(RESTARTS):
            before = told("pushed")
            until("more messages", lambda: told("pushed") >= before + 20)
            world.upgrade()
        before = told("pushed")
        until("messages after the last hot restart", lambda: told("pushed") >= before + 20)
        return f"{told('acked')} messages stored and {told('pushed')} pushed in order over {RESTARTS} hot restarts"
    finally:
        child.terminate()
        child.wait(PATIENCE)


def main():
    program = os.path.abspath(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tempfile.mkdtemp(prefix="moorline-clients-")
    world, failed = None, 0
    try:
        world = World(program, folder, f"http://127.0.0.1:{server.server_port}")
        checks = [python_byte_by_byte, python_numbers_of_records, python_downgrade, openssl_early_data, gnutls, curl]
        checks.append(chromium)
        passed = 0
        for check in checks:
            started = time.monotonic()
            try:
                said, passed, word = check(world), passed + 1, "ok"
            except Exception as error:  # the others are run all the same
                said, failed, word = repr(error), failed + 1, "FAILED"
            print(f"{word:7}{check.__name__:28}{time.monotonic() - started:6.1f} s   {said}", flush=True)
        print(f"{passed} passed, {failed} failed; {world.restarts} hot restarts")
    finally:
        if world:
            world.end()
        if failed:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed or not world else 0


if __name__ == "__main__":
    sys.exit(main())
