"""A driver: grpcurl, a process for each call, with the descriptors of the server's reflection."""

import base64
import json
import pathlib
import subprocess
import sys

from driver import ADDRESS, SECONDS_MAX, answered, code_name, failed, serve, type_name

GRPCURL = pathlib.Path(sys.executable).parent / "grpcurl"
OPTIONS = ["-plaintext", "-emit-defaults", "-format-error", "-max-time", str(SECONDS_MAX)]


def messages(lines):
    """The messages that grpcurl prints, each as soon as its last line is there."""
    text = ""
    for line in lines:
        text += line
        if line.rstrip("\n") == "}":
            yield json.loads(text)
            text = ""


def error(text):
    """What `-format-error` prints. Details that grpcurl does not know are in base64."""
    status = json.loads(text)
    details = status.get("details", [])
    return failed(
        code_name(status["code"]),
        [(type_name(it["@type"]), base64.b64decode(it["@value"])) for it in details],
    )


def call(method, fields, take):
    process = subprocess.Popen(
        [GRPCURL, *OPTIONS, "-d", "@", ADDRESS, method.path.removeprefix("/")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        process.stdin.write(json.dumps(fields))
        process.stdin.close()
        found = []
        for message in messages(process.stdout):
            found.append(message)
            if len(found) == take:
                process.kill()
                return answered(method, found)
        text = process.stderr.read()
        return error(text) if process.wait() else answered(method, found)


serve(call)
