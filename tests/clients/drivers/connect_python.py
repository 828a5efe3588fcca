"""A driver: connectrpc for Python, with the messages of the generated stubs.

Its argument is the protocol: `connect`, `connect-json`, `grpc-web` or `grpc`.
"""

import itertools
import sys

from connectrpc.client import ConnectClientSync
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from driver import ADDRESS, SECONDS_MAX, answered, failed, serve, to_json

JSON, BINARY = google_protobuf_json_codec(), google_protobuf_binary_codec()
PROTOCOL, CODEC, HTTP = {
    "connect": (ProtocolType.CONNECT, BINARY, HTTPVersion.HTTP1),
    "connect-json": (ProtocolType.CONNECT, JSON, HTTPVersion.HTTP2),
    "grpc-web": (ProtocolType.GRPC_WEB, BINARY, HTTPVersion.HTTP1),
    "grpc": (ProtocolType.GRPC, BINARY, HTTPVersion.HTTP2),
}[sys.argv[1]]

# The server takes requests uncompressed only.
CLIENT = ConnectClientSync(
    f"http://{ADDRESS}",
    protocol=PROTOCOL,
    codec=CODEC,
    send_compression=None,
    timeout_ms=SECONDS_MAX * 1000,
    http_client=SyncClient(SyncHTTPTransport(http_version=HTTP)),
)


def kind(method):
    if method.sends_stream:
        return StreamType.BIDI_STREAM
    return StreamType.SERVER_STREAM if method.is_stream else StreamType.UNARY


def call(method, fields, take):
    info = MethodInfo(
        name=method.name,
        service_name=method.service,
        input=method.input,
        output=method.output,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind(method),
    )
    request = method.request(fields)
    try:
        if not method.is_stream:
            answer = CLIENT.execute_unary(request=request, method=info)
            return answered(method, [to_json(answer)])
        if method.sends_stream:
            stream = CLIENT.execute_bidi_stream(request=iter([request]), method=info)
        else:
            stream = CLIENT.execute_server_stream(request=request, method=info)
        messages = [to_json(message) for message in itertools.islice(stream, take)]
        stream.close()
        return answered(method, messages)
    except ConnectError as error:
        code = error.code.name
        return failed(code, [(it.type_name, it.message_bytes) for it in error.details])


serve(call)
