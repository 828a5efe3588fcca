"""The service from Python, with stubs generated from proto/, and with grpcio's own clients."""

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from accolade.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    completion_pb2,
    completion_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def update(player, node, **fields):
    return storage_pb2.SetAchievementStorageRequest(
        title="demo", player_id=player, node_id=node, **fields
    )


def test_a_room_that_is_behind_merges_and_completes_once(channel):
    storage = storage_pb2_grpc.AchievementStorageServiceStub(channel)
    other = update("7", "hunter_of_beasts", delta=3, extra="cow", expected_version=0)
    assert storage.SetAchievementStorage(other).code == 0

    mine = update(
        "7", "hunter_of_beasts", delta=3, extra="sheep", expected_version=0, request_id="r"
    )
    refused = storage.SetAchievementStorage(mine)
    assert (refused.code, refused.message) == (5, "操作冲突")
    assert (refused.entity.extra, refused.entity.version) == ("cow", 1)

    mine.extra, mine.expected_version = "cow sheep", refused.entity.version
    done = storage.SetAchievementStorage(mine)
    assert done.newly_completed and not done.replayed
    again = storage.SetAchievementStorage(mine)
    assert again.replayed and again.cursor == done.cursor

    feed = completion_pb2_grpc.CompletionServiceStub(channel)
    request = completion_pb2.WatchCompletionsRequest(
        title="demo", after="", heartbeat_interval=Duration(nanos=100_000_000)
    )
    stream = feed.WatchCompletions(request, timeout=30)
    events = [next(stream) for _ in range(3)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", "completion", "heartbeat"]
    assert events[1].completion.display_name == "混合猎手"
    assert events[2].heartbeat.cursor == done.cursor
    stream.cancel()


def test_several_nodes_and_players_at_once(channel):
    storage = storage_pb2_grpc.AchievementStorageServiceStub(channel)
    batch = storage_pb2.BatchSetAchievementStorageRequest(
        title="demo",
        player_id="8",
        updates=[
            storage_pb2.NodeUpdate(node_id="chef", delta=1),
            storage_pb2.NodeUpdate(node_id="brewer", finish=True),
        ],
        request_id="b",
    )
    stored = storage.BatchSetAchievementStorage(batch)
    assert stored.code == 0
    assert [result.newly_completed for result in stored.results] == [False, True]
    assert storage.BatchSetAchievementStorage(batch).replayed

    request = storage_pb2.BatchGetAchievementStorageRequest(title="demo", player_ids=["9", "8"])
    players = storage.BatchGetAchievementStorage(request).players
    assert [player.player_id for player in players] == ["9", "8"]
    assert [len(player.entity) for player in players] == [0, 2]

    batch.request_id = ""
    batch.updates[0].expected_version = 7
    refused = storage.BatchSetAchievementStorage(batch)
    assert (refused.code, [result.code for result in refused.results]) == (5, [5, 0])


def test_a_catalogue_is_read_and_applied(channel):
    catalogs = catalog_pb2_grpc.CatalogServiceStub(channel)
    demo = catalogs.GetCatalog(catalog_pb2.GetCatalogRequest(title="demo"))
    assert len(demo.definitions) == 22
    request = catalog_pb2.ApplyCatalogRequest(
        title="copy", definitions=demo.definitions, expected_revision=0
    )
    assert catalogs.ApplyCatalog(request).revision == 1
    titles = catalogs.ListTitles(catalog_pb2.ListTitlesRequest()).titles
    assert [title.title for title in titles] == ["copy", "demo"]


def test_failures_are_statuses(channel):
    storage = storage_pb2_grpc.AchievementStorageServiceStub(channel)
    with pytest.raises(grpc.RpcError) as failure:
        storage.SetAchievementStorage(update("7", "nope", delta=1))
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as failure:
        storage.SetAchievementStorage(update("", "chef", delta=1))
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(failure.value.trailing_metadata())
    assert b"FIELD_INVALID" in trailers["grpc-status-details-bin"]


def test_health_answers_grpcios_client(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ["", "accolade.v1.AchievementStorageService"]:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    first = next(iter(stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)))
    assert first.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_v1alpha_answers_grpcios_client(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "accolade.v1.CatalogService" in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    message = pool.FindMessageTypeByName("accolade.v1.Completion")
    assert "completed_at" in message.fields_by_name


def test_reflection_v1_answers_the_same(channel):
    # The messages of v1 and v1alpha are the same on the wire.
    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=30)
    names = {service.name for service in next(answers).list_services_response.service}
    assert "accolade.v1.CompletionService" in names


def test_a_stream_answers_each_set_under_its_tag(channel):
    storage = storage_pb2_grpc.AchievementStorageServiceStub(channel)
    sets = [
        update("8", "hunter_of_beasts", delta=1),
        update("8", "no-such-node", delta=1),
        update("8", "hunter_of_beasts", delta=1, expected_version=7),
    ]
    requests = (
        storage_pb2.StreamSetAchievementStorageRequest(tag=tag, set=each)
        for tag, each in enumerate(sets)
    )
    stream = storage.StreamSetAchievementStorage(requests, timeout=30)
    answers = {answer.tag: answer for answer in stream}
    assert answers[0].response.changed and answers[0].response.updated.progress == 1
    assert answers[1].status.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert [detail.type_url.split("/")[-1] for detail in answers[1].status.details] == [
        "google.rpc.ErrorInfo"
    ]
    assert answers[2].response.code == 5
