"""A driver: the Connect protocol as curl speaks it, in JSON, a process for each call.

Answers are passed on as they came, so the table sees every name and default of the server's JSON.
"""

import base64
import json
import struct
import subprocess

from driver import ADDRESS, SECONDS_MAX, answered, failed, serve

# How Connect puts a code into HTTP, where the call is not a stream.
STATUSES = {
    "invalid_argument": 400,
    "not_found": 404,
    "aborted": 409,
    "failed_precondition": 400,
    "out_of_range": 400,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
}

END_OF_STREAM = 2


def curl(method, kind, *options):
    return subprocess.Popen(
        [
            *["curl", "--silent", "--show-error", "--no-buffer", "--max-time", str(SECONDS_MAX)],
            *["--header", f"content-type: {kind}", "--data-binary", "@-", *options],
            f"http://{ADDRESS}{method.path}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def error(fields):
    """Connect's error object; details are in base64 without padding."""
    details = fields.get("details", [])
    return failed(
        fields["code"].upper(),
        [(it["type"], base64.b64decode(it["value"] + "==")) for it in details],
    )


def unary(method, fields):
    process = curl(method, "application/json", "--write-out", "\n%{http_code} %{content_type}")
    out, _ = process.communicate(json.dumps(fields).encode())
    text, _, end = out.decode().rpartition("\n")
    status, _, kind = end.partition(" ")
    assert (process.returncode, kind) == (0, "application/json"), out
    answer = json.loads(text)
    if status == "200":
        return answered(method, [answer])
    assert STATUSES[answer["code"]] == int(status), out
    return error(answer)


def frames(source):
    """Flags and JSON of each frame: a byte, the length in four bytes, the message."""
    while head := source.read(5):
        flags, length = struct.unpack(">BI", head)
        yield flags, json.loads(source.read(length))


def stream(method, fields, take):
    message = json.dumps(fields).encode()
    with curl(method, "application/connect+json") as process:
        process.stdin.write(struct.pack(">BI", 0, len(message)) + message)
        process.stdin.close()
        found = []
        for flags, message in frames(process.stdout):
            if flags == END_OF_STREAM:
                return error(message["error"]) if "error" in message else answered(method, found)
            assert flags == 0, flags
            found.append(message)
            if len(found) == take:
                process.kill()
                return answered(method, found)
    raise EOFError(f"the stream broke off after {found}")


def call(method, fields, take):
    return stream(method, fields, take) if method.is_stream else unary(method, fields)


serve(call)
