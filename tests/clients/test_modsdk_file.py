"""The one file for ModSDK scripts, on this Python and on Jython, which is Python 2.7.

`SCRIPT` is a game's script: it makes the calls it is given, and tells what its functions were told.
`Door` stands between it and the server, or in the server's place.
"""

import http.client
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from conftest import ROOT, Server

JYTHON = ROOT / ".tools" / "debian" / "jython" / "run"
CATALOG = '[[definitions]]\nnode_id = "counter"\nmax_progress = 1099511627776\n'
SET = "/accolade.v1.AchievementStorageService/SetAchievementStorage"
GET = "/accolade.v1.AchievementStorageService/GetAchievementStorage"

SCRIPT = r"""
import json, logging, sys, threading, time
import accolade_modsdk

logging.basicConfig()
spec = json.loads(sys.stdin.read())
answers, told, threads = spec.get("answers", []), [], set()


def native(value):
    # As a script written for the ModSDK has it: plain `str` and integers.
    if str is bytes and isinstance(value, type(u"")):
        return value.encode("utf-8")
    if isinstance(value, list):
        return [native(item) for item in value]
    return value


def check(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value), value
        value = list(value.values())
    if isinstance(value, list):
        assert all(check(item) for item in value), value
        return True
    return value is None or type(value) is str or type(value) in (int, type(1 << 40))


def callback(data):
    threads.add(threading.current_thread().name)
    assert check(data), data
    told.append(data)
    answer = answers.pop(0) if answers else None
    if answer == "raise":
        raise ValueError("raised by the script")
    return answer


def extra_of(texts):
    def get_extra_data():
        threads.add(threading.current_thread().name)
        return texts.pop(0) if len(texts) > 1 else texts[0]

    return get_extra_data


factory = accolade_modsdk.connect(**dict((str(key), spec["connect"][key]) for key in spec["connect"]))
comp = factory.CreateAchievement(0)
started = time.time()
for call in native(spec["calls"]):
    if call[0] == "get":
        comp.LobbyGetAchievementStorage(callback, *call[1:])
    elif len(call) == 4:
        comp.LobbySetAchievementStorage(callback, *call[1:])
    else:
        comp.LobbySetAchievementStorage(callback, call[1], call[2], call[3], extra_of(call[4]))
returned = time.time() - started
if spec["connect"].get("poll"):
    time.sleep(0.3)
    assert not told and not threads, "nothing runs before the first tick"
    while len(told) < spec["polls_until"]:
        factory.Poll()
        time.sleep(0.01)
factory.close()
try:
    comp.LobbyGetAchievementStorage(callback, 1)
    raise AssertionError("it was closed")
except RuntimeError:
    pass
print(json.dumps([told, sorted(threads), returned, time.time() - started]))
"""

NOTHING = {"completed_at": 0, "extra": "", "progress": 0, "version": 0}
STORED = {"code": 0, "message": "正常返回", "details": ""}
CONFLICT = {"code": 5, "message": "操作冲突", "details": ""}


def state(progress, version, extra=""):
    return {"completed_at": 0, "extra": extra, "progress": progress, "version": version}


def records(progress, version, extra=""):
    counter = {"achievement_id": "counter", "max_progress": 1 << 40}
    return {**STORED, "entity": [{**state(progress, version, extra), **counter}]}


@pytest.fixture(params=[sys.executable, JYTHON], ids=["python", "jython"])
def python(request):
    if request.param == JYTHON and not JYTHON.exists():
        pytest.skip("Jython is missing: make tools says why")
    return request.param


@pytest.fixture
def run(python, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    shutil.copy(ROOT / "clients" / "modsdk" / "accolade_modsdk.py", tmp_path)

    def run(address, calls, answers=(), environment=(), **spec):
        connect = {"address": address, "title": "t", **spec.pop("connect", {})}
        spec.update(connect=connect, calls=calls, answers=answers)
        done = subprocess.run(
            [python, tmp_path / "script.py"],
            input=json.dumps(spec),
            env={**os.environ, **dict(environment)},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        told, threads, returned, seconds = json.loads(done.stdout)
        assert returned < 5, "the calls return at once"
        assert threads == (["MainThread"] if connect.get("poll") else ["accolade"])
        return told, seconds

    return run


@pytest.fixture
def server(tmp_path):
    (tmp_path / "t.toml").write_text(CATALOG)
    server = Server(tmp_path / "data", "--catalog", f"t={tmp_path / 't.toml'}")
    yield server
    server.stop()


class Door(http.server.ThreadingHTTPServer):
    """Answers by `answer(path, request)`, with a status and an object, or by cutting on `None`."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.address = "127.0.0.1:%d" % self.server_port
        self.requests = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), request))
        answer = self.server.answer(self.path, request)
        if answer is None:
            self.close_connection = True
            return
        status, answer = answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def door():
    doors = []

    def make(answer):
        doors.append(Door(answer))
        return doors[-1]

    yield make
    for made in doors:
        made.shutdown()
        made.server_close()


def forward(address, path, request):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def stored_by_another(server, **fields):
    request = {"title": "t", "player_id": "10001", "node_id": "counter", **fields}
    status, answer = forward(server.address, SET, request)
    assert (status, answer["code"]) == (200, 0), answer


def test_the_calls_give_the_modsdks_dicts(server, run):
    told, _ = run(
        server.address,
        [
            ["get", 10001],
            ["set", 10001, "counter", 1 << 33],
            ["get", 10001],
            ["set", 10001, "unknown", 3],
            ["set", 10001, "counter", 0],
            ["set", 10001, "counter", "three"],
            ["set", 10001, "counter", 1, ["牛"]],
            ["set", 10001, "counter", 1, [5]],
            ["get", "10001"],
        ],
    )
    assert told == [
        {**STORED, "entity": []},
        {**STORED, "entity": NOTHING},
        records(1 << 33, 1),
        None,
        None,
        None,
        {**STORED, "entity": state(1 << 33, 1)},
        None,
        records((1 << 33) + 1, 2, "牛"),
    ]


@pytest.mark.parametrize("poll", [False, True])
def test_a_conflict_is_the_scripts_to_decide(server, run, poll):
    stored_by_another(server, delta=3, extra="theirs", expected_version=0)
    merged, mine = ["set", 10001, "counter", 1, ["mine", "merged", "late"]], ["get", 10001]
    spec = {"connect": {"poll": poll}, "polls_until": 3}
    told, _ = run(server.address, [merged, mine], [True, False], **spec)
    assert told == [
        {**CONFLICT, "entity": state(3, 1, "theirs")},
        {**STORED, "entity": state(3, 1, "theirs")},
        records(4, 2, "merged"),
    ]

    for answer in [False, None, 1, "raise"]:
        told, _ = run(server.address, [merged, mine], [answer], **{**spec, "polls_until": 2})
        assert told == [{**CONFLICT, "entity": state(4, 2, "merged")}, records(4, 2, "merged")]


def test_a_script_that_fails_harms_no_other_call(server, run):
    calls = [["set", 10001, "counter", 1], ["set", 10001, "counter", 1], ["get", 10001]]
    told, _ = run(server.address, calls, ["raise", "raise"])
    assert [it["code"] for it in told] == [0, 0, 0]
    assert told[2] == records(2, 2)


def test_an_addition_whose_answer_is_lost_is_counted_once(server, run, door):
    losses = iter([True, True, False])

    def answer(path, request):
        found = forward(server.address, path, request)
        return None if path == SET and next(losses) else found

    lossy = door(answer)
    told, _ = run(lossy.address, [["set", 10001, "counter", 7], ["get", 10001]])
    assert told == [{**STORED, "entity": NOTHING}, records(7, 1)]
    names = [request["request_id"] for path, _, request in lossy.requests if path == SET]
    assert len(names) == 3 and len(set(names)) == 1


def test_what_may_pass_is_tried_again_and_a_pause_is_kept(run, door):
    retry = {"type": "google.rpc.RetryInfo", "value": "", "debug": {"retryDelay": "0.500s"}}
    answers = iter(
        [
            (503, {"code": "unavailable", "message": "it stops"}),
            (502, b"<html>"),
            (200, b"no JSON"),
            (429, {"code": "resource_exhausted", "details": [retry]}),
            (200, {}),
            (200, {"code": 0, "message": "正常返回", "updated": {"version": "1"}}),
        ]
    )
    fake = door(lambda path, request: next(answers))
    told, seconds = run(fake.address, [["set", 1, "counter", 1]], connect={"token": "secret"})
    assert told == [{**STORED, "entity": NOTHING}]
    assert seconds > 0.5
    assert len({json.dumps(request, sort_keys=True) for _, _, request in fake.requests}) == 1
    for path, headers, _ in fake.requests:
        assert path == SET
        assert headers["Content-Type"] == "application/json"
        assert headers["Connect-Protocol-Version"] == "1"
        assert 0 < int(headers["Connect-Timeout-Ms"]) <= 3000
        assert headers["Authorization"] == "Bearer secret"
    assert len(fake.requests) == 6


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"code": "invalid_argument", "message": "a bad field", "details": [{"type": 1}]}),
        (429, {"code": "resource_exhausted", "message": "the answer is too large"}),
        (404, b"<html>"),
    ],
)
def test_what_does_not_pass_is_told_at_once(run, door, refusal):
    fake = door(lambda path, request: refusal)
    told, seconds = run(fake.address, [["get", 1]], connect={"deadline": 600})
    assert told == [None]
    # On a machine that stalls for 3 seconds it asks once more.
    assert len(fake.requests) == 1 or seconds > 3


def test_a_deadline_ends_attempts_and_waiting(run, door):
    ends = threading.Event()
    silent = door(lambda path, request: ends.wait(30) and None)
    told, seconds = run(silent.address, [["get", 1]], connect={"deadline": 1.0})
    ends.set()
    assert told == [None] and 0.9 < seconds < 25
    told, seconds = run("127.0.0.1:9", [["get", 1]], connect={"deadline": 0.5})
    assert told == [None] and seconds < 25


def test_conflicts_without_end_are_given_up(run, door):
    fake = door(lambda path, request: (200, {"code": 5, "entity": {"version": "9"}}))
    told, _ = run(fake.address, [["set", 1, "counter", 1, ["text"]]], [True] * 99)
    assert told == [{**CONFLICT, "entity": state(0, 9)}] * 21
    versions = [request["expected_version"] for _, _, request in fake.requests]
    assert versions == ["0"] + ["9"] * 20


def test_a_record_that_was_read_is_written_on_its_version(server, run):
    stored_by_another(server, delta=3)
    told, _ = run(server.address, [["get", 10001], ["set", 10001, "counter", 1, ["mine"]]])
    assert told == [records(3, 1), {**STORED, "entity": state(3, 1)}]


def test_in_poll_mode_a_tick_takes_what_is_there(server, run):
    calls = [["set", 10001, "counter", 1] for _ in range(100)]
    told, _ = run(server.address, calls, connect={"poll": True}, polls_until=50)
    assert [it["entity"]["progress"] for it in told] == list(range(100))


def test_https_checks_the_certificate(tmp_path, run, python):
    if python == JYTHON:
        pytest.skip("this Jython has no ssl")
    if not shutil.which("openssl"):
        pytest.skip("openssl is missing")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"]
        + ["ec_paramgen_curve:prime256v1", "-subj", "/CN=accolade", "-days", "2"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    tls = ["--tls-certificate", certificate, "--tls-key", key]
    server = Server(tmp_path / "data", *tls)
    secure = {"secure": True, "title": "demo", "deadline": 30.0}
    told, _ = run(server.address, [["get", 1]], connect={**secure, "deadline": 1.0})
    assert told == [None], "nobody vouches for it"
    trusted = {"SSL_CERT_FILE": str(certificate)}
    told, _ = run(server.address, [["get", 1]], connect=secure, environment=trusted)
    assert told == [{**STORED, "entity": []}]
    server.stop()
