"""One table of calls, cases.json, on the real server through every client that there is.

A case has a name and calls, and a title of its own, so that cases work in any order. A call has

- `method`, and `request` as proto3's JSON with the names of the `.proto` files;
- `take`, for a stream: so many messages are read, then it is cancelled;
- what is answered: `response`, the `responses` of a stream, or the `error` with its code, the
  reason of ErrorInfo and the fields of BadRequest, in their order as texts;
- `keep`: names for values of the answer, such as {"place": "results.0.cursor"}.

Answers are compared in full: a field that is not in the table must be at its default, and one that
is must be there also at its default. In them, "*" is any text but "" and "0", and "..." in a list is
any number of items. Everywhere {"$": "place"} is a value that was kept before, and
{"repeat": "ab", "times": 3} is that text, or list, so many times.

Clients are driven by programs that drivers/driver.py describes.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import pytest

from conftest import ROOT, Server

HERE = pathlib.Path(__file__).parent
CASES = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))

# Where a field is not set; 64-bit integers are texts.
DEFAULTS = ("", "0", 0, False, [])

# A driver gives up a call by itself before that.
ANSWER_SECONDS_MAX = 60


def python(name, *arguments):
    return [sys.executable, HERE / "drivers" / name, *arguments]


def node(name, *arguments):
    return ["node", HERE / "drivers" / name, *arguments]


CPP = ROOT / ".tools" / "cpp"
NODE_MODULES = ROOT / "clients" / "typescript" / "node_modules"

DRIVERS = {
    "grpcio": python("grpcio.py"),
    "grpcurl": python("grpcurl.py"),
    "curl": python("connect_curl.py"),
    "connectrpc, connect": python("connect_python.py", "connect"),
    "connectrpc, connect-json": python("connect_python.py", "connect-json"),
    "connectrpc, grpc-web": python("connect_python.py", "grpc-web"),
    "connectrpc, grpc": python("connect_python.py", "grpc"),
    "grpc-js": node("grpc_js.mjs"),
    "connect-node, connect": node("connect_node.mjs", "connect"),
    "connect-node, connect-json": node("connect_node.mjs", "connect-json", "2"),
    "connect-node, grpc-web": node("connect_node.mjs", "grpc-web"),
    "connect-node, grpc": node("connect_node.mjs", "grpc"),
    "c++": [CPP / "driver", CPP / "accolade.binpb"],
}


def missing(name, command):
    """What to install before a driver can run; None where all is there."""
    if name == "curl" and not shutil.which("curl"):
        return "install curl"
    if name == "c++" and not all(it.exists() for it in command):
        return "the driver in C++ is not built: make tools says why"
    if command[0] == "node" and not shutil.which("node"):
        return "install Node.js 20 or newer"
    if command[0] == "node" and not NODE_MODULES.exists():
        return f"{NODE_MODULES.relative_to(ROOT)} is missing: make tools"
    return None


class Driver:
    """A running driver."""

    def __init__(self, command, address):
        environment = {**os.environ, "ACCOLADE_ADDRESS": address}
        # Whatever proxy the machine has, the server is on this side of it.
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def call(self, method, request, take):
        asked = {"method": method, "request": request}
        if take is not None:
            asked["take"] = take
        watchdog = threading.Timer(ANSWER_SECONDS_MAX, self.process.kill)
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the driver ended in {method} of {request}"
        return plain(json.loads(line))

    def stop(self):
        self.process.kill()
        self.process.communicate()


def plain(value):
    """JSON with the names of the `.proto` files, and nothing where a message is not set."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        fields = {re.sub("[A-Z]", lambda it: "_" + it[0].lower(), key): value[key] for key in value}
        return {key: plain(item) for key, item in fields.items() if item is not None}
    return value


def filled(value, kept):
    """A value of the table, with what was kept before, and with its repetitions."""
    if isinstance(value, list):
        return [filled(item, kept) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$"}:
        return kept[value["$"]]
    if value.keys() == {"repeat", "times"}:
        return value["repeat"] * value["times"]
    return {key: filled(item, kept) for key, item in value.items()}


def fits(expected, found):
    """Whether an answer is what the table says."""
    if expected == "*":
        return isinstance(found, str) and found not in ("", "0")
    numbers = (int, float)
    if type(expected) in numbers and type(found) in numbers:
        return expected == found
    if type(expected) is not type(found):
        return False
    if isinstance(expected, dict):
        others = [found[key] for key in found if key not in expected]
        named = all(key in found and fits(expected[key], found[key]) for key in expected)
        return named and all(it in DEFAULTS for it in others)
    if not isinstance(expected, list):
        return expected == found
    if "..." in expected:
        at = expected.index("...")
        rest = expected[at + 1 :]
        starts = range(at, len(found) + 1)
        return fits(expected[:at], found[:at]) and any(fits(rest, found[it:]) for it in starts)
    return len(expected) == len(found) and all(map(fits, expected, found))


def pick(answer, path):
    for key in path.split("."):
        answer = answer[int(key) if isinstance(answer, list) else key]
    return answer


def differences(driver, case):
    """Runs a case up to the first answer that is not the table's, and tells that one."""
    kept = {}
    for number, call in enumerate(case["calls"]):
        method, request = call["method"], filled(call["request"], kept)
        found = driver.call(method, request, call.get("take"))
        kind = next(it for it in ("response", "responses", "error") if it in call)
        expected = filled({kind: call[kind]}, kept)
        if kind == "error":
            expected["error"].setdefault("fields", [])
        if not fits(expected, found):
            where = f"{case['name']}: call {number + 1}, {method} of {short(request)}"
            return [f"{where}\n  expected {short(expected)}\n  found    {short(found)}"]
        for name, path in call.get("keep", {}).items():
            kept[name] = pick(found[kind], path)
    return []


def short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 2000 else text[:2000] + " …"


def test_each_case_has_a_name_and_titles_of_its_own():
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)
    owners = {}
    for number, case in enumerate(CASES):
        requests = [json.dumps(call["request"].get("title")) for call in case["calls"]]
        for title in set(requests) - {"null", '""'}:
            assert owners.setdefault(title, number) == number, (title, case["name"])


@pytest.mark.parametrize("name", DRIVERS)
def test_every_client_is_answered_as_the_table_says(name, tmp_path):
    command = DRIVERS[name]
    if what := missing(name, command):
        pytest.skip(f"{name}: {what}")
    # A title that is read from a file, for the case that tries to change it.
    sample = ROOT / "samples" / "demo.toml"
    server = Server(tmp_path / "data", "--catalog", f"from-a-file={sample}")
    driver = Driver(command, server.address)
    try:
        found = [it for case in CASES for it in differences(driver, case)]
    finally:
        driver.stop()
        server.stop()
    assert not found, "\n".join(found)
