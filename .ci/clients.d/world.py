"""A gateway with a listener of each kind, and its backend: processes that end with this one."""

import os
import re
import select
import subprocess
import time

NAME = "gateway.test"
PATIENCE = 60


def until(what, look):
    """Looks until it is true; a machine that is too slow for that is an error that says so."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


class World:
    def __init__(self, program, folder, origin):
        self.program, self.folder, self.origin, self.children = program, folder, origin, []
        self.certificate, key = f"{folder}/certificate.pem", f"{folder}/key.pem"
        run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1", "-days", "2"]
        run += ["-keyout", key, "-out", self.certificate]
        subprocess.run(run, check=True, capture_output=True)
        os.chmod(key, 0o600)
        backend = self.start("backend", "--set", "listen=127.0.0.1:0", "--set", "link.unproven=loopback")
        link = re.search(r"link=(\S+)", backend).group(1)
        kinds = ["tls", "wss", "tcp"]
        listeners = "".join(
            f'[[listener]]\nname = "{kind}"\nkind = "{kind}"\naddress = "127.0.0.1:0"\n' for kind in kinds
        )
        settings = f"{folder}/moorline.toml"
        with open(settings, "w") as file:
            file.write(
                f'{listeners}[backend]\nendpoints = ["{link}"]\nunproven = "loopback"\n[auth]\nmode = "dev"\n'
                f'[websocket]\norigins = ["{origin}"]\n[admin]\naddress = "127.0.0.1:0"\n[reactor]\ncount = 2\n'
                f'[tls]\ncertificates = ["{self.certificate}"]\nkeys = ["{key}"]\ndefault = "{self.certificate}"\n'
            )
        ready = self.start("run", "-c", settings)
        self.admin = re.search(r"admin=(\S+)", ready).group(1)
        addresses = re.search(r"listeners?=(\S+)", ready).group(1).split(",")
        self.ports = {kind: int(address.rsplit(":", 1)[1]) for kind, address in zip(kinds, addresses)}
        self.restarts = 0

    def start(self, *arguments):
        log = open(f"{self.folder}/{arguments[0]}.log", "w")
        child = subprocess.Popen(
            [self.program, *arguments, "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        self.children.append(child)
        assert select.select([child.stdout], [], [], PATIENCE)[0], f"{arguments[0]} is not ready"
        line = child.stdout.readline().decode()
        assert " ready " in line, f"{arguments}: {line}"
        return line

    def upgrade(self):
        run = [self.program, "upgrade", "--admin", self.admin]
        done = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"upgrade: {done.stdout}{done.stderr}"
        self.restarts += 1

    def end(self):
        # Whichever process serves, its standard input ends here.
        for child in reversed(self.children):
            child.stdin.close()
        for child in self.children:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
