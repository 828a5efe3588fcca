"""The Python package: with and without asyncio, and the ModSDK's two calls, on the real server."""

import asyncio
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from accolade.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    storage_pb2,
)
from accolade_client import CONFLICT, CONFLICTS_MAX, AsyncClient, Client, modsdk
from conftest import ROOT, Server

NODE = ("t", "10001", "counter")


def apply(address):
    with grpc.insecure_channel(address) as channel:
        definitions = [
            catalog_pb2.Definition(node_id="counter", max_progress=1 << 40),
            catalog_pb2.Definition(node_id="once", max_progress=1),
        ]
        request = catalog_pb2.ApplyCatalogRequest(title="t", definitions=definitions)
        catalog_pb2_grpc.CatalogServiceStub(channel).ApplyCatalog(request)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data")
    apply(server.address)
    yield server
    server.stop()


class Waiting:
    """`Client` as it is."""

    def __init__(self, *arguments, **named):
        self.client = Client(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self.client, name)

    def first(self, count, *arguments, events=False, **named):
        follow = self.client.watch_events if events else self.client.watch
        watch = follow(*arguments, **named)
        found = [next(watch) for _ in range(count)]
        watch.close()
        return found


class Awaiting:
    """`AsyncClient` with the same face, each call run to its end on one loop."""

    def __init__(self, *arguments, **named):
        self.loop = asyncio.new_event_loop()

        async def make():
            return AsyncClient(*arguments, **named)

        self.client = self.loop.run_until_complete(make())

    def __getattr__(self, name):
        method = getattr(self.client, name)
        return lambda *a, **n: self.loop.run_until_complete(method(*a, **n))

    def first(self, count, *arguments, events=False, **named):
        follow = self.client.watch_events if events else self.client.watch

        async def first():
            found = []
            watch = follow(*arguments, **named)
            async for completion in watch:
                found.append(completion)
                if len(found) == count:
                    await watch.aclose()
                    return found

        return self.loop.run_until_complete(first())


@pytest.fixture(params=[Waiting, Awaiting])
def client_of(request):
    clients = []

    def make(*arguments, **named):
        clients.append(request.param(*arguments, **named))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def never(entity):
    raise AssertionError(f"nothing conflicts: {entity}")


def test_a_text_meets_a_conflict_and_the_caller_decides(server, client_of):
    first, second = client_of(server.address), client_of(server.address)
    first.add(*NODE, 1, extra=lambda: "a", on_conflict=never)
    assert first.add(*NODE, 1, extra=lambda: "b", on_conflict=never).updated.version == 2

    texts, told = iter(["c1", "c2"]), []

    def goes_on(entity):
        told.append((entity.version, entity.progress, entity.extra))
        return True

    answer = second.add(*NODE, 10, extra=lambda: next(texts), on_conflict=goes_on)
    assert (answer.code, answer.updated.progress, answer.updated.extra) == (0, 12, "c2")
    assert told == [(2, 2, "b")]

    answer = first.add(*NODE, 100, extra=lambda: "d", on_conflict=lambda _: False)
    assert (answer.code, answer.entity.version) == (CONFLICT, 3)
    [record] = first.get("t", "10001")
    assert (record.progress, record.version) == (12, 3)
    first.add(*NODE, 1, extra=lambda: "e", on_conflict=never)


def test_conflicts_without_end_are_given_up(server, client_of):
    client, asked = client_of(server.address, deadline=120), []
    other = Client(server.address, deadline=120)

    def extra():
        other.add(*NODE, 1)
        return ""

    def goes_on(entity):
        asked.append(entity.version)
        return True

    answer = client.add(*NODE, 1, extra=extra, on_conflict=goes_on)
    assert (answer.code, len(asked)) == (CONFLICT, CONFLICTS_MAX)
    other.close()


class LossyProxy:
    """Passes bytes both ways; while `loses`, the server's are thrown away."""

    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.loses = False
        self.sockets = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            self.sockets += [client, server]
            for pair in [(client, server, False), (server, client, True)]:
                threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, source, to, is_answer):
        has_lost = False
        try:
            while data := source.recv(1 << 16):
                # What was lost once stays lost until the connection is cut.
                has_lost = has_lost or (is_answer and self.loses)
                if not has_lost:
                    to.sendall(data)
        except OSError:
            pass
        for end in (source, to):
            end.close()

    def cut(self):
        for end in self.sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.sockets = []

    def close(self):
        self.listener.close()
        self.cut()


def test_an_addition_whose_answer_is_lost_is_counted_once(server, client_of):
    proxy = LossyProxy(server.address)
    client, direct = client_of(proxy.address, deadline=30), Client(server.address)
    assert client.get("t", "10001") == []
    proxy.loses = True

    def restore():
        for _ in range(1000):
            if direct.get("t", "10001"):
                break
            time.sleep(0.01)
        proxy.loses = False
        proxy.cut()

    restoring = threading.Thread(target=restore)
    restoring.start()
    answer = client.add(*NODE, 1)
    restoring.join()
    assert answer.replayed
    assert [record.progress for record in direct.get("t", "10001")] == [1]
    direct.close()
    proxy.close()


def test_a_set_keeps_the_name_that_it_is_given(server, client_of):
    client = client_of(server.address)
    request = storage_pb2.SetAchievementStorageRequest(
        title="t", player_id="1", node_id="counter", delta=1, request_id="this"
    )
    assert [client.set(request).replayed for _ in range(2)] == [False, True]
    request.request_id = ""
    assert [client.set(request).replayed for _ in range(2)] == [False, False]
    assert request.request_id == "", "the caller's message is left as it is"


def test_a_watch_goes_on_over_restarts_of_the_server(tmp_path, client_of):
    server = Server(tmp_path / "data")
    apply(server.address)
    client, direct = client_of(server.address), Client(server.address, deadline=30)
    completed = []
    heard = queue.Queue()

    def follow():
        heard.put([it.player_id for it in client.first(60, "t", after="")])

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    for part in range(3):
        for n in range(20):
            player = f"{part}-{n}"
            assert direct.add("t", player, "once", 1).newly_completed
            completed.append(player)
        server.process.kill()
        server.process.wait()
        server = Server(tmp_path / "data", address=server.address)
    assert heard.get(timeout=120) == completed
    following.join()
    direct.close()
    server.stop()


def test_a_watch_tells_of_whom_it_is_asked(server, client_of):
    client = client_of(server.address)
    for player in ["a", "b", "c"]:
        client.add("t", player, "once", 1)
    found = client.first(2, "t", after="", player_ids=["a", "c"], node_ids=["once"])
    assert [it.player_id for it in found] == ["a", "c"]
    [found] = client.first(1, "t", after=found[0].cursor)
    assert found.player_id == "b"


def test_resets_are_told_to_whoever_asks(server, client_of):
    client = client_of(server.address)
    client.add("t", "a", "once", 1)
    with grpc.insecure_channel(server.address) as channel:
        reset = admin_pb2.ResetAchievementRequest(
            title="t", player_id="a", node_id="once", reason="refunded"
        )
        admin_pb2_grpc.AdminServiceStub(channel).ResetAchievement(reset)
    client.add("t", "a", "once", 1)
    found = client.first(3, "t", after="", events=True)
    kinds = [type(it).__name__ for it in found]
    assert kinds == ["Completion", "Reset", "Completion"]
    assert found[1].reason == "refunded"
    found = client.first(2, "t", after="")
    assert [it.version for it in found] == [1, 3]


def test_what_does_not_pass_is_told_at_once(server, client_of):
    client = client_of(server.address, deadline=600)
    for call, code in [
        (lambda: client.add("t", "1", "unknown", 1), grpc.StatusCode.NOT_FOUND),
        (lambda: client.add("t", "", "counter", 1), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: client.first(1, "t", after="?"), grpc.StatusCode.INVALID_ARGUMENT),
    ]:
        with pytest.raises(grpc.RpcError) as told:
            call()
        assert told.value.code() == code
    with pytest.raises(grpc.RpcError) as told:
        client_of("127.0.0.1:9", deadline=0.5).get("t", "1")
    assert told.value.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }


def test_the_modsdks_calls_give_the_modsdks_dicts(server):
    factory, other = modsdk.connect(server.address, title="t"), Client(server.address)
    comp = factory.CreateAchievement(0)
    told = []
    comp.LobbyGetAchievementStorage(told.append, 10001)
    comp.LobbySetAchievementStorage(told.append, 10001, "counter", 3)
    comp.LobbyGetAchievementStorage(told.append, 10001)
    comp.LobbySetAchievementStorage(told.append, 10001, "unknown", 3)
    factory.close()
    nothing = {"completed_at": 0, "extra": "", "progress": 0, "version": 0}
    stored = {"code": 0, "message": "正常返回", "details": ""}
    record = {"achievement_id": "counter", "max_progress": 1 << 40}
    after = {**record, "completed_at": 0, "extra": "", "progress": 3, "version": 1}
    assert told == [
        {**stored, "entity": []},
        {**stored, "entity": nothing},
        {**stored, "entity": [after]},
        None,
    ]

    factory = modsdk.connect(server.address, title="t")
    comp = factory.CreateAchievement(0)
    told, answers, texts = [], iter([True, False]), iter(["mine", "merged", "late"])

    def callback(data):
        told.append(data)
        return next(answers, None)

    comp.LobbySetAchievementStorage(callback, 10001, "counter", 1, lambda: next(texts))
    factory.close()
    conflict = {"code": 5, "message": "操作冲突", "details": ""}
    state = {"completed_at": 0, "extra": "", "progress": 3, "version": 1}
    assert told == [{**conflict, "entity": state}, {**stored, "entity": state}]
    assert [it.extra for it in other.get("t", "10001")] == ["merged"]

    factory = modsdk.connect(server.address, title="t")
    told = []
    comp = factory.CreateAchievement(0)
    comp.LobbySetAchievementStorage(
        lambda data: bool(told.append(data)), 10001, "counter", 1, lambda: "left"
    )
    factory.close()
    assert [it["code"] for it in told] == [5], "it leaves the conflict, and is told once"
    assert [it.extra for it in other.get("t", "10001")] == ["merged"]
    other.close()


def python_of(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_readmes_python_runs_on_the_package_as_it_is_installed(server, tmp_path):
    package = ROOT / "clients" / "python"
    source, into = tmp_path / "clients" / "python", tmp_path / "installed"
    # Building writes beside what it builds.
    subprocess.run(["cp", "-r", package, tmp_path / "python"], check=True)
    source.parent.mkdir()
    (tmp_path / "python").rename(source)
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    built = [*pip, "--no-build-isolation", f"--target={into}", source]
    done = subprocess.run(built, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(into, "accolade_client", "py.typed").exists()
    assert pathlib.Path(into, "accolade", "v1", "storage_pb2.pyi").exists()

    blocks = python_of("README.md") + python_of("README.zh-CN.md")
    assert len(blocks) >= 4
    for block in blocks:
        assert "127.0.0.1:50151" in block
        code = block.replace("127.0.0.1:50151", server.address)
        environment = {"PYTHONPATH": f"{into}:{ROOT / 'clients' / 'modsdk'}"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (block, done.stderr)
        assert done.stdout, block
