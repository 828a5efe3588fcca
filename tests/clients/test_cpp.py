"""The example in C++ on the real server: what it prints, and that it loses and doubles nothing."""

import subprocess
import threading
import time

import pytest

from accolade_client import Client
from conftest import ROOT, Server
from test_python_client import LossyProxy, apply

EXAMPLE = ROOT / ".tools" / "cpp" / "example"

pytestmark = pytest.mark.skipif(
    not EXAMPLE.exists(), reason="the example in C++ is not built: make tools says why"
)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data")
    apply(server.address)
    yield server
    server.stop()


def example(*words):
    return subprocess.run([EXAMPLE, *words], capture_output=True, text=True, timeout=60)


def printed(*words):
    done = example(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_reads_adds_and_tells_failures(server):
    assert printed(server.address, "get", "t", "7") == []
    assert printed(server.address, "add", "t", "7", "counter", "3") == ["counter 3"]
    assert printed(server.address, "add", "t", "7", "counter", "4") == ["counter 7"]
    assert printed(server.address, "add", "t", "7", "once", "1") == ["once 1 newly completed"]
    found = printed(server.address, "get", "t", "7")
    assert found == [f"counter 7/{1 << 40}", "once 1/1 completed"]
    failed = example(server.address, "add", "t", "7", "unknown", "1")
    assert (failed.returncode, failed.stderr.split(":")[0]) == (1, "status 5")


class LateProxy(LossyProxy):
    """Lets pass what a connection begins with, for no request is sent before that."""

    def carry(self, source, to, is_answer):
        try:
            to.sendall(source.recv(1 << 16))
        except OSError:
            pass
        super().carry(source, to, is_answer)


def test_an_addition_whose_answer_is_lost_is_counted_once(server):
    proxy, direct = LateProxy(server.address), Client(server.address)
    proxy.loses = True

    def restore():
        for _ in range(1000):
            if direct.get("t", "7"):
                break
            time.sleep(0.01)
        proxy.loses = False
        proxy.cut()

    restoring = threading.Thread(target=restore)
    restoring.start()
    assert printed(proxy.address, "add", "t", "7", "counter", "1") == ["counter 1 replayed"]
    restoring.join()
    direct.close()
    proxy.close()


def test_a_watch_goes_on_over_restarts_of_the_server(tmp_path):
    server = Server(tmp_path / "data")
    apply(server.address)
    with subprocess.Popen(
        [EXAMPLE, server.address, "watch", "t"], stdout=subprocess.PIPE, text=True
    ) as watch:
        completed = []
        for part in range(3):
            direct = Client(server.address, deadline=30)
            for n in range(20):
                completed.append(f"{part}-{n}")
                direct.add("t", completed[-1], "once", 1)
            direct.close()
            server.process.kill()
            server.process.wait()
            server = Server(tmp_path / "data", address=server.address)
        lines = [watch.stdout.readline().split() for _ in completed]
        watch.kill()
    assert [player for player, _, _ in lines] == completed

    cursor = lines[-2][2]
    with subprocess.Popen(
        [EXAMPLE, server.address, "watch", "t", cursor], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout.readline().split() == lines[-1]
        watch.kill()
    server.stop()
