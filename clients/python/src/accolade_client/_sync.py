"""The client that waits."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Iterator, List, Optional, Sequence, Type, Union

import grpc
from accolade.v1 import (
    completion_pb2,
    completion_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)

from . import _rules


class Client:
    """A client; threads may share it.

    `token` goes with every request; with one, pass `credentials` too, such as
    `grpc.ssl_channel_credentials()`, unless the server is on this machine. `deadline` is in seconds.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50151",
        *,
        token: Optional[str] = None,
        credentials: Optional[grpc.ChannelCredentials] = None,
        deadline: float = _rules.DEADLINE_DEFAULT,
    ) -> None:
        options = _rules.CHANNEL_OPTIONS
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._metadata = [("authorization", f"Bearer {token.strip()}")] if token else []
        self._deadline = deadline
        self._is_closed = False
        self._versions = _rules.Versions()
        self._storage = storage_pb2_grpc.AchievementStorageServiceStub(self._channel)
        self._completions = completion_pb2_grpc.CompletionServiceStub(self._channel)

    def close(self) -> None:
        """Ends all calls and watches."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def get(
        self, title: str, player_id: str, node_ids: Sequence[str] = ()
    ) -> List[storage_pb2.Record]:
        """Reads the records of a player: those of these nodes, or all where none are named."""
        request = storage_pb2.GetAchievementStorageRequest(
            title=title, player_id=player_id, achievement_ids=node_ids
        )
        attempts = _rules.Attempts(self._deadline)
        records = list(self._call(self._storage.GetAchievementStorage, request, attempts).entity)
        for record in records:
            self._versions.saw((title, player_id, record.achievement_id), record.version)
        return records

    def set(
        self, request: storage_pb2.SetAchievementStorageRequest
    ) -> storage_pb2.SetAchievementStorageResponse:
        """Changes a record. Without a `request_id` it gets one; all attempts use the same.

        After an error the update may be stored, unless the server refused it at the first attempt:
        give a `request_id` beforehand, and repeat the call with the same.
        """
        if not request.request_id:
            named = storage_pb2.SetAchievementStorageRequest()
            named.CopyFrom(request)
            named.request_id = _rules.new_request_id()
            request = named
        return self._set(request, _rules.Attempts(self._deadline))

    def add(
        self,
        title: str,
        player_id: str,
        node_id: str,
        delta: int,
        *,
        extra: Optional[_rules.Extra] = None,
        on_conflict: Optional[_rules.OnConflict] = None,
        request_id: str = "",
    ) -> storage_pb2.SetAchievementStorageResponse:
        """Adds to the progress of a record, as the seed's `LobbySetAchievementStorage` does.

        With `extra`, its text is stored as well, on the version that this client saw last. On a
        conflict `on_conflict` gets the record that is stored now; if it returns `True`, `extra` is
        asked once more, and the same addition is stored with it.
        """
        record = (title, player_id, node_id)
        attempts = _rules.Attempts(self._deadline)
        steps = _rules.add(self._versions, record, delta, extra, on_conflict, request_id)
        request = next(steps)
        while True:
            answer = self._set(request, attempts)
            try:
                request = steps.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def watch(
        self,
        title: str,
        *,
        after: Optional[str] = None,
        player_ids: Sequence[str] = (),
        node_ids: Sequence[str] = (),
    ) -> Iterator[completion_pb2.Completion]:
        """Follows completions: from now on, or `after` a cursor; `""` stands for the oldest.

        Resumes by itself. Keep a completion's cursor together with what it causes. Resets are
        passed over.
        """
        request = _rules.watch_request(title, after, player_ids, node_ids)
        return self._follow(request, ("completion",))

    def watch_events(
        self,
        title: str,
        *,
        after: Optional[str] = None,
        player_ids: Sequence[str] = (),
        node_ids: Sequence[str] = (),
    ) -> Iterator[Union[completion_pb2.Completion, completion_pb2.Reset]]:
        """Like `watch`, and tells of resets too: for whoever must take something back."""
        request = _rules.watch_request(title, after, player_ids, node_ids)
        return self._follow(request, ("completion", "reset"))

    def _follow(
        self, request: completion_pb2.WatchCompletionsRequest, kinds: Sequence[str]
    ) -> Iterator[Any]:
        pauses = _rules.Pauses()
        while not self._is_closed:
            stream = self._completions.WatchCompletions(request, metadata=self._metadata)
            try:
                for message in stream:
                    moved, event = _rules.take(request, message, kinds)
                    if moved:
                        pauses = _rules.Pauses()
                    if event is not None:
                        yield event
                pause = _rules.PAUSE_MIN
            except grpc.RpcError as error:
                if self._is_closed:
                    return
                if not _rules.may_pass(error):
                    raise
                pause = pauses.after(error)
            finally:
                stream.cancel()
            time.sleep(pause)

    def _set(
        self, request: storage_pb2.SetAchievementStorageRequest, attempts: _rules.Attempts
    ) -> storage_pb2.SetAchievementStorageResponse:
        answer = self._call(self._storage.SetAchievementStorage, request, attempts)
        self._versions.saw_answer(request, answer)
        return answer  # type: ignore[no-any-return]

    def _call(self, method: Any, request: Any, attempts: _rules.Attempts) -> Any:
        while True:
            try:
                return method(request, timeout=attempts.timeout(), metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(attempts.pause(error))
