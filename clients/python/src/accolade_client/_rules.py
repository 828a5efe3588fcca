"""What both clients decide alike: when to try again, under which id, on which version."""

from __future__ import annotations

import collections
import random
import secrets
import threading
import time
from typing import Any, Callable, Generator, Optional, Sequence, Tuple

import grpc
from accolade.v1 import completion_pb2, storage_pb2
from google.rpc import error_details_pb2, status_pb2

STORED = 0
"""`code` of a set that was stored, or had nothing to do."""
CONFLICT = 5
"""`code` of a set whose record is not at the expected version."""

CONFLICTS_MAX = 20
"""Most conflicts that one `add` asks about."""

DEADLINE_DEFAULT = 10.0
"""Seconds that a call may take, all its attempts together."""
ATTEMPT_MAX = 3.0
"""Seconds that one attempt may take, for a connection may have died without a word."""
PAUSE_MIN, PAUSE_MAX = 0.05, 5.0
HEARTBEAT = 10
"""Seconds between heartbeats where nothing completes. A connection that went silent is noticed by
the channel's keepalive within 30 s."""
VERSIONS_MAX = 10_000
"""Most records whose version is remembered; those that were not used for long are forgotten."""

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 64 << 20),
    # Attempts and their pauses are this package's.
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", int(PAUSE_MAX * 1000)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
)

_MAY_PASS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
    }
)

RecordId = Tuple[str, str, str]
Extra = Callable[[], str]
OnConflict = Callable[[storage_pb2.RecordState], bool]
SetSteps = Generator[
    storage_pb2.SetAchievementStorageRequest,
    storage_pb2.SetAchievementStorageResponse,
    storage_pb2.SetAchievementStorageResponse,
]


def pause_told(error: Any) -> Optional[float]:
    """Seconds that the server asks to wait."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status()
            status.ParseFromString(value)
            for detail in status.details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


def may_pass(error: Any) -> bool:
    """Whether trying again can help."""
    return error.code() in _MAY_PASS or pause_told(error) is not None


def new_request_id() -> str:
    """A name that no other update has."""
    return secrets.token_urlsafe(16)


class Pauses:
    """Each is up to twice the one before; between half of it and all of it, by chance."""

    def __init__(self) -> None:
        self._pause = PAUSE_MIN

    def after(self, error: Any) -> float:
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, PAUSE_MAX)
        return pause + (pause_told(error) or 0.0)


class Attempts:
    """The attempts of one call."""

    def __init__(self, deadline: float) -> None:
        self._until = time.monotonic() + deadline
        self._pauses = Pauses()

    def timeout(self) -> float:
        return max(0.0, min(self._left(), ATTEMPT_MAX))

    def pause(self, error: Any) -> float:
        """Seconds until the next attempt; raises the error where there is none."""
        pause = self._pauses.after(error)
        if not may_pass(error) or pause >= self._left():
            raise error
        return pause

    def _left(self) -> float:
        return self._until - time.monotonic()


class Versions:
    """The newest version of each record that was seen."""

    def __init__(self) -> None:
        self._versions: collections.OrderedDict[RecordId, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    def of(self, record: RecordId) -> int:
        """0 for a record that was not seen."""
        with self._lock:
            version = self._versions.get(record, 0)
            if version:
                self._versions.move_to_end(record)
            return version

    def saw(self, record: RecordId, version: int, is_conflict: bool = False) -> None:
        """After a conflict this is what is stored, be it older: a backup may have been restored."""
        with self._lock:
            if is_conflict or version > self._versions.get(record, 0):
                self._versions[record] = version
                self._versions.move_to_end(record)
                if len(self._versions) > VERSIONS_MAX:
                    self._versions.popitem(last=False)

    def saw_answer(
        self,
        request: storage_pb2.SetAchievementStorageRequest,
        answer: storage_pb2.SetAchievementStorageResponse,
    ) -> None:
        record = (request.title, request.player_id, request.node_id)
        is_conflict = answer.code == CONFLICT
        version = answer.entity.version if is_conflict else answer.updated.version
        self.saw(record, version, is_conflict)


def add(
    versions: Versions,
    record: RecordId,
    delta: int,
    extra: Optional[Extra],
    on_conflict: Optional[OnConflict],
    request_id: str,
) -> SetSteps:
    """The sets that make an addition: each is yielded, its answer sent in; returns the last."""
    title, player_id, node_id = record
    request = storage_pb2.SetAchievementStorageRequest(
        title=title,
        player_id=player_id,
        node_id=node_id,
        delta=delta,
        request_id=request_id or new_request_id(),
    )
    if extra is None:
        return (yield request)
    # What the text is made from is at least this old.
    version = versions.of(record)
    asked = 0
    while True:
        request.extra = extra()
        request.expected_version = version
        answer = yield request
        if answer.code != CONFLICT or asked == CONFLICTS_MAX or on_conflict is None:
            return answer
        asked += 1
        if not on_conflict(answer.entity):
            return answer
        # Not what another call has seen meanwhile: the caller has judged this one.
        version = answer.entity.version


def watch_request(
    title: str, after: Optional[str], player_ids: Any, node_ids: Any
) -> completion_pb2.WatchCompletionsRequest:
    request = completion_pb2.WatchCompletionsRequest(
        title=title, player_ids=player_ids, achievement_ids=node_ids
    )
    if after is not None:
        request.after = after
    request.heartbeat_interval.FromSeconds(HEARTBEAT)
    return request


def take(
    request: completion_pb2.WatchCompletionsRequest,
    message: completion_pb2.WatchCompletionsResponse,
    kinds: Sequence[str],
) -> Tuple[bool, Any]:
    """Moves a watch to where a message is; tells whether it moved, and what happened there, where
    it is of one of these kinds."""
    kind = message.WhichOneof("event")
    if kind is None:
        return False, None
    event = getattr(message, kind)
    moved = not request.HasField("after") or request.after != event.cursor
    request.after = event.cursor
    return moved, event if kind in kinds else None
