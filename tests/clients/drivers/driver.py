"""What the drivers in Python share: the loop over calls, and messages as the table has them.

A driver reads one call a line from standard input, {"method", "request", "take"?}, sends it to the
server at ACCOLADE_ADDRESS, and writes what became of it as a line: {"response"}, or {"responses"}
for a stream of which the first `take` messages are read, or {"error": {"code", "reason", "fields"}}.
Where requests are a stream as well, this one is all that is sent.
"""

import json
import os
import sys

from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import code_pb2, error_details_pb2

# Imported for their descriptors.
from accolade.v1 import admin_pb2, catalog_pb2, completion_pb2, storage_pb2  # noqa: F401

ADDRESS = os.environ["ACCOLADE_ADDRESS"]

# No call of the table takes so long.
SECONDS_MAX = 30


class Method:
    """A method and the classes of its messages."""

    def __init__(self, path):
        service, _, name = path.partition("/")
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        self.service, self.name, self.path = service, name, f"/{path}"
        self.is_stream = descriptor.server_streaming
        self.sends_stream = descriptor.client_streaming
        self.input = message_factory.GetMessageClass(descriptor.input_type)
        self.output = message_factory.GetMessageClass(descriptor.output_type)

    def request(self, fields):
        return json_format.ParseDict(fields, self.input())


def to_json(message):
    """Every field, the defaults too, under the names of the `.proto` files."""
    return json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )


def answered(method, messages):
    """The messages of a call that did not fail."""
    return {"responses": messages} if method.is_stream else {"response": messages[0]}


def failed(code, details):
    """The error of a call; `details` are pairs of a type's name and its bytes."""
    error = {"code": code, "reason": "", "fields": []}
    for name, value in details:
        if name == "google.rpc.ErrorInfo":
            error["reason"] = error_details_pb2.ErrorInfo.FromString(value).reason
        if name == "google.rpc.BadRequest":
            bad = error_details_pb2.BadRequest.FromString(value)
            error["fields"] = sorted(violation.field for violation in bad.field_violations)
    return {"error": error}


def code_name(number):
    return code_pb2.Code.Name(number)


def type_name(url):
    return url.rpartition("/")[2]


def serve(call):
    """Answers each line with `call(method, fields, take)`."""
    for line in sys.stdin:
        asked = json.loads(line)
        answer = call(Method(asked["method"]), asked["request"], asked.get("take"))
        print(json.dumps(answer), flush=True)
