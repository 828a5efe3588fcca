"""A driver: grpcio, without the stubs' own classes."""

import itertools

import grpc
from google.rpc import status_pb2

from driver import ADDRESS, SECONDS_MAX, answered, failed, serve, to_json, type_name

CHANNEL = grpc.insecure_channel(ADDRESS)


def kind(method):
    if method.sends_stream:
        return CHANNEL.stream_stream
    return CHANNEL.unary_stream if method.is_stream else CHANNEL.unary_unary


def call(method, fields, take):
    send = kind(method)(
        method.path,
        request_serializer=method.input.SerializeToString,
        response_deserializer=method.output.FromString,
    )
    try:
        request = method.request(fields)
        request = iter([request]) if method.sends_stream else request
        answer = send(request, timeout=SECONDS_MAX)
        if not method.is_stream:
            return answered(method, [to_json(answer)])
        messages = [to_json(message) for message in itertools.islice(answer, take)]
        answer.cancel()
        return answered(method, messages)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        return failed(
            error.code().name, [(type_name(any.type_url), any.value) for any in status.details]
        )


serve(call)
