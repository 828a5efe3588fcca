"""Starts the real server for the tests of clients in other languages."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ACCOLADE_BINARY", ROOT / "target" / "debug" / "accolade")
GRPCURL = pathlib.Path(sys.executable).parent / "grpcurl"


class Server:
    """A running server with the sample catalogue."""

    def __init__(self, data, *args, address="127.0.0.1:0"):
        self.process = subprocess.Popen(
            [BINARY, "serve", "--data", data, "--listen", address, *args],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            # With TLS there are no commands to paste, and no empty line behind them.
            if not line.strip() or "https://" in line:
                break
        prefix, scheme, self.address = self.lines[0].rpartition("://")
        assert scheme and prefix.startswith("accolade listens on http"), self.lines

    def grpcurl(self, *args):
        """Runs grpcurl; gives its exit code, output and errors."""
        done = subprocess.run(
            [GRPCURL, "-plaintext", *args], capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout, done.stderr

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data")
    yield server
    server.stop()
