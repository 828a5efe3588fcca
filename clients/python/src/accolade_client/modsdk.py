"""The two calls of NetEase's Minecraft ModSDK, with their names, arguments and answers.

    factory = modsdk.connect("127.0.0.1:50151", title="mygame")
    comp = factory.CreateAchievement(levelId)
    comp.LobbyGetAchievementStorage(callback, playerId)
    comp.LobbySetAchievementStorage(callback, playerId, nodeId, delta, getExtraData)

As in the ModSDK the calls return at once, and `callback` gets a dict, or `None` where the request
failed. Calls are made one after the other, and callbacks called, on a thread of the factory's own.
"""

from __future__ import annotations

import concurrent.futures
import logging
from typing import Any, Callable, Dict, Optional

import grpc
from accolade.v1 import storage_pb2

from ._rules import STORED
from ._sync import Client

Answer = Optional[Dict[str, Any]]
Callback = Callable[[Answer], Any]

_LOG = logging.getLogger(__name__)
_CODE_STORED = {"code": STORED, "message": "正常返回", "details": ""}


def connect(target: str = "127.0.0.1:50151", *, title: str, **arguments: Any) -> Factory:
    """A factory for a title; the other arguments are those of `Client`."""
    return Factory(Client(target, **arguments), title)


class Factory:
    """Stands for the engine's component factory."""

    def __init__(self, client: Client, title: str) -> None:
        self._client = client
        self._title = title
        self._calls = concurrent.futures.ThreadPoolExecutor(1, "accolade")

    def CreateAchievement(self, levelId: Any) -> Achievement:  # noqa: N802, N803
        """The component; `levelId` is not looked at, since a title has no levels here."""
        del levelId
        return Achievement(self._client, self._title, self._calls)

    def close(self) -> None:
        """Waits for the calls that were made, and ends the connection."""
        self._calls.shutdown()
        self._client.close()


class Achievement:
    """The achievement component."""

    def __init__(
        self, client: Client, title: str, calls: concurrent.futures.ThreadPoolExecutor
    ) -> None:
        self._client = client
        self._title = title
        self._calls = calls

    def LobbyGetAchievementStorage(self, callback: Callback, playerId: int) -> None:  # noqa: N802, N803
        """Gives all records of a player to `callback`."""
        self._calls.submit(_guarded, callback, self._get, callback, playerId)

    def LobbySetAchievementStorage(  # noqa: N802
        self,
        callback: Callback,
        playerId: int,  # noqa: N803
        nodeId: str,  # noqa: N803
        delta: int,
        getExtraData: Optional[Callable[[], str]] = None,  # noqa: N803
    ) -> None:
        """Adds to a node's progress, and gives the record before that to `callback`.

        Where `code` is 5, `callback` gets the record that is stored now; if it returns `True`,
        `getExtraData` is called once more, and both are stored.
        """
        self._calls.submit(
            _guarded, callback, self._set, callback, playerId, nodeId, delta, getExtraData
        )

    def _get(self, callback: Callback, player_id: int) -> None:
        records = self._client.get(self._title, str(player_id))
        callback({**_CODE_STORED, "entity": [_record(record) for record in records]})

    def _set(
        self,
        callback: Callback,
        player_id: int,
        node_id: str,
        delta: int,
        get_extra_data: Optional[Callable[[], str]],
    ) -> None:
        goes_on = True

        def on_conflict(entity: storage_pb2.RecordState) -> bool:
            nonlocal goes_on
            goes_on = callback(_conflict(entity)) is True
            return goes_on

        answer = self._client.add(
            self._title,
            str(player_id),
            node_id,
            delta,
            extra=get_extra_data,
            on_conflict=on_conflict,
        )
        # Else it was told of this conflict, and left it there.
        if goes_on:
            callback(_answer(answer))


def _guarded(callback: Callback, call: Callable[..., None], *arguments: Any) -> None:
    try:
        call(*arguments)
    except grpc.RpcError as error:
        _LOG.warning("the request failed: %s", error)
        callback(None)
    except Exception:
        _LOG.exception("a callback failed")


def _state(entity: storage_pb2.RecordState) -> Dict[str, Any]:
    return {
        "completed_at": entity.completed_at,
        "extra": entity.extra,
        "progress": entity.progress,
        "version": entity.version,
    }


def _record(record: storage_pb2.Record) -> Dict[str, Any]:
    return {
        "achievement_id": record.achievement_id,
        "completed_at": record.completed_at,
        "extra": record.extra,
        "max_progress": record.max_progress,
        "progress": record.progress,
        "version": record.version,
    }


def _conflict(entity: storage_pb2.RecordState) -> Dict[str, Any]:
    return {"code": 5, "message": "操作冲突", "details": "", "entity": _state(entity)}


def _answer(answer: storage_pb2.SetAchievementStorageResponse) -> Dict[str, Any]:
    return {
        "code": answer.code,
        "message": answer.message,
        "details": answer.details,
        "entity": _state(answer.entity),
    }
