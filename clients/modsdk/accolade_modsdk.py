# -*- coding: utf-8 -*-
"""The two calls of NetEase's Minecraft ModSDK, in one file for scripts that cannot load gRPC.

Copy this file beside the script. It needs nothing but the standard library, on Python 2.7 and 3, or
Jython. It speaks the Connect protocol: JSON over HTTP/1.1.

    import accolade_modsdk
    factory = accolade_modsdk.connect("127.0.0.1:50151", title="mygame", poll=True)
    comp = factory.CreateAchievement(levelId)
    comp.LobbyGetAchievementStorage(callback, playerId)
    comp.LobbySetAchievementStorage(callback, playerId, nodeId, delta, getExtraData)

As in the ModSDK the calls return at once, and `callback` gets a dict, or `None` where the request
failed. Requests are made one after the other on a thread of the factory's own.

Scripts of the ModSDK have one thread, and the engine may be called on no other. So pass `poll=True`
and call `factory.Poll()` in every tick: `callback` and `getExtraData` then run inside `Poll()`.
Without `poll` they run on the factory's thread, one after the other.

Texts are `str` both ways, on Python 2 in UTF-8.
"""

import collections
import json
import logging
import operator
import random
import threading
import time

try:
    import http.client as http_client
    import queue
except ImportError:  # Python 2.
    import httplib as http_client
    import Queue as queue

STORED = 0
CONFLICT = 5

CONFLICTS_MAX = 20
"""Most conflicts that one call asks `callback` about."""
DEADLINE_DEFAULT = 10.0
"""Seconds that a call may take, all its attempts together. The script's own time is not counted."""
ATTEMPT_MAX = 3.0
"""Seconds that one attempt may take, for a connection may have died without a word."""
PAUSE_MIN, PAUSE_MAX = 0.05, 5.0
VERSIONS_MAX = 10000
"""Most records whose version is remembered; those that were not used for long are forgotten."""
CALLS_MAX = 10000
"""Most calls that wait; with more, `callback` gets `None` before the call returns."""
TASKS_MAX = 1000
"""Most functions of the script that wait for `Poll`; no more requests are made meanwhile."""
ANSWER_BYTES_MAX = 64 << 20
"""As much as a server can be set to answer."""

_MAY_PASS = frozenset(["unavailable", "unknown", "canceled", "deadline_exceeded", "internal"])
# What the Connect protocol makes of answers that some proxy gave.
_CODE_OF_STATUS = {
    400: "internal",
    401: "unauthenticated",
    403: "permission_denied",
    404: "unimplemented",
    429: "unavailable",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}

_LOG = logging.getLogger(__name__)
# It cannot be set back, where there is one.
_clock = getattr(time, "monotonic", time.time)


def connect(
    address="127.0.0.1:50151",
    title=None,
    token=None,
    deadline=DEADLINE_DEFAULT,
    secure=False,
    poll=False,
):
    """A factory for a title. Nothing is sent before the first call.

    `secure` asks for https, and checks the server's certificate; an `ssl.SSLContext` in place of
    `True` says which authorities are trusted. It needs Python 2.7.9 or newer. Pass it wherever
    there is a `token`, unless the server is on this machine.
    """
    if not title:
        raise ValueError("which title?")
    if "/" in address:
        raise ValueError("an address is host:port, not %r" % address)
    return Factory(_Server(str(address), token, _context(secure)), _text(title), deadline, poll)


class Factory(object):
    """Stands for the engine's component factory."""

    def __init__(self, server, title, deadline, poll):
        self._server = server
        self._title = title
        self._deadline = deadline
        self._versions = _Versions()
        self._calls = queue.Queue()
        self._tasks = queue.Queue(TASKS_MAX) if poll else None
        self._is_polling = False
        self._is_closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="accolade")
        self._thread.daemon = True
        self._thread.start()

    def CreateAchievement(self, levelId):
        """The component; `levelId` is not looked at, since a title has no levels here."""
        return Achievement(self)

    def Poll(self):
        """Runs the script's functions that wait; never waits itself. For every tick."""
        if self._tasks is None or self._is_polling:
            return
        self._is_polling = True
        try:
            # Not those that come meanwhile: a tick must end.
            for _ in range(self._tasks.qsize()):
                self._tasks.get_nowait().run()
        finally:
            self._is_polling = False

    def close(self):
        """Waits for the calls that were made, polls meanwhile, and ends the connection.

        Called by one of the script's functions, it does not wait.
        """
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self._calls.put(None)
        if self._is_polling or threading.current_thread() is self._thread:
            return
        while self._thread.is_alive():
            self.Poll()
            self._thread.join(0.01)
        self.Poll()

    def _submit(self, call, callback, *arguments):
        with self._closing:
            if self._is_closed:
                raise RuntimeError("the factory is closed")
            is_refused = self._calls.qsize() >= CALLS_MAX
            if not is_refused:
                self._calls.put((call, callback, arguments))
        if is_refused:
            _LOG.warning("the request failed: %d calls wait already", CALLS_MAX)
            _Task(callback, (None,)).run()

    def _work(self):
        while True:
            job = self._calls.get()
            if job is None:
                break
            call, callback, arguments = job
            try:
                call(callback, *arguments)
            except _Failed as failure:
                _LOG.warning("the request failed: %s", failure)
                self._tell(callback, None)
            except:  # noqa: E722  On Jython, what Java throws is no Exception.
                _LOG.exception("the request failed")
                self._tell(callback, None)
        self._server.close()

    def _tell(self, function, *arguments):
        """Has a function of the script called; in poll mode by the next `Poll`."""
        task = _Task(function, arguments)
        if self._tasks is None:
            task.run()
        else:
            self._tasks.put(task)
        return task

    def _post(self, method, request, attempts):
        request["title"] = self._title
        return attempts.run(lambda timeout: self._server.post(method, request, timeout))

    def _get(self, callback, player_id):
        request = {"player_id": _player(player_id)}
        answer = self._post("GetAchievementStorage", request, _Attempts(self._deadline))
        records = [_record(record) for record in answer.get("entity") or ()]
        for record in records:
            name = (request["player_id"], _text(record["achievement_id"]))
            self._versions.saw(name, record["version"])
        self._tell(callback, _told(STORED, records))

    def _set(self, callback, player_id, node_id, delta, get_extra_data):
        request = {
            "player_id": _player(player_id),
            "node_id": _text(node_id),
            "delta": str(operator.index(delta)),
            # The same in all attempts, so that the addition is counted once.
            "request_id": "%032x" % random.SystemRandom().getrandbits(128),
        }
        name = (request["player_id"], request["node_id"])
        attempts = _Attempts(self._deadline)
        # What the text is made from is at least this old.
        version = self._versions.of(name)
        asked = 0
        while True:
            if get_extra_data is not None:
                request["extra"] = _text(self._tell(get_extra_data).result())
                request["expected_version"] = str(version)
            answer = self._post("SetAchievementStorage", request, attempts)
            code, state = _int(answer, "code"), _state(answer.get("entity"))
            if code != CONFLICT:
                self._versions.saw(name, _int(answer.get("updated"), "version"))
            else:
                self._versions.saw(name, state["version"], True)
            told = self._tell(callback, _told(code, state))
            if code != CONFLICT or get_extra_data is None or asked == CONFLICTS_MAX:
                return
            asked += 1
            if told.result() is not True:
                return
            # Not a newer one: the script has judged this one.
            version = state["version"]


class Achievement(object):
    """The achievement component."""

    def __init__(self, factory):
        self._factory = factory

    def LobbyGetAchievementStorage(self, callback, playerId):
        """Gives all records of a player to `callback`."""
        self._factory._submit(self._factory._get, callback, playerId)

    def LobbySetAchievementStorage(self, callback, playerId, nodeId, delta, getExtraData=None):
        """Adds to a node's progress, and gives the record before that to `callback`.

        Where `code` is 5, `callback` gets the record that is stored now; if it returns `True`,
        `getExtraData` is called once more, and both are stored.
        """
        self._factory._submit(self._factory._set, callback, playerId, nodeId, delta, getExtraData)


class _Task(object):
    """One call of a function of the script, which may fail without harm to anything else."""

    def __init__(self, function, arguments):
        self._function = function
        self._arguments = arguments
        self._is_done = threading.Event()
        self._result = None

    def run(self):
        try:
            self._result = self._function(*self._arguments)
        except KeyboardInterrupt:
            raise
        except:  # noqa: E722  On Jython, what Java throws is no Exception.
            _LOG.exception("a function of the script failed")
        finally:
            self._is_done.set()

    def result(self):
        """Waits for it; `None` where it failed."""
        self._is_done.wait()
        return self._result


class _Failed(Exception):
    """The server, or the way to it, refused a request."""

    def __init__(self, code, message, pause=None):
        Exception.__init__(self, "%s: %s" % (code, message))
        self.pause = pause
        self.may_pass = code in _MAY_PASS or pause is not None


class _Attempts(object):
    """The attempts of one call: the time they have, and the pauses between them."""

    def __init__(self, deadline):
        self._left = deadline
        self._pause = PAUSE_MIN

    def run(self, attempt):
        while True:
            try:
                return self._spend(attempt, max(0.001, min(self._left, ATTEMPT_MAX)))
            except _Failed as failure:
                pause = self._pause * random.uniform(0.5, 1.0) + (failure.pause or 0.0)
                self._pause = min(self._pause * 2, PAUSE_MAX)
                if not failure.may_pass or pause >= self._left:
                    raise
            self._spend(time.sleep, pause)

    def _spend(self, function, seconds):
        started = _clock()
        try:
            return function(seconds)
        finally:
            # Python 2's clock may be set back.
            self._left -= max(0.0, _clock() - started)


class _Server(object):
    """The connection, kept open between requests. Only the factory's thread uses it."""

    def __init__(self, address, token, context):
        if context is None:
            self._connection = http_client.HTTPConnection(address)
        else:
            self._connection = http_client.HTTPSConnection(address, context=context)
        self._headers = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        if token:
            self._headers["Authorization"] = "Bearer " + str(token).strip()

    def close(self):
        self._connection.close()

    def post(self, method, request, timeout):
        """The answer to a request, or `_Failed`."""
        try:
            status, body = self._exchange(method, request, timeout)
        except (EnvironmentError, http_client.HTTPException) as error:
            self.close()
            raise _Failed("unavailable", repr(error))
        except:
            self.close()
            raise
        answer = _object(body)
        if status != 200:
            code = answer.get("code") or _CODE_OF_STATUS.get(status, "unknown")
            message = answer.get("message") or "HTTP %d" % status
            raise _Failed(code, message, _pause_told(answer))
        if not answer:
            raise _Failed("unknown", "the answer is no JSON object")
        return answer

    def _exchange(self, method, request, timeout):
        until = _clock() + timeout
        headers = dict(self._headers)
        headers["Connect-Timeout-Ms"] = str(max(1, int(timeout * 1000)))
        if self._connection.sock is None:
            self._connection.timeout = timeout
            self._connection.connect()
        self._connection.sock.settimeout(max(0.001, until - _clock()))
        path = "/accolade.v1.AchievementStorageService/" + method
        self._connection.request("POST", path, json.dumps(request), headers)
        response = self._connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX + 1)
        if len(body) > ANSWER_BYTES_MAX:
            self.close()
            raise _Failed("resource_exhausted", "the answer is too large")
        return response.status, body


class _Versions(object):
    """The newest version of each record that was seen."""

    def __init__(self):
        self._versions = collections.OrderedDict()

    def of(self, name):
        """0 for a record that was not seen."""
        version = self._versions.pop(name, 0)
        if version:
            self._versions[name] = version
        return version

    def saw(self, name, version, is_conflict=False):
        """After a conflict this is what is stored, be it older: a backup may have been restored."""
        if is_conflict or version > self._versions.get(name, 0):
            self._versions.pop(name, None)
            self._versions[name] = version
            if len(self._versions) > VERSIONS_MAX:
                self._versions.popitem(last=False)


def _context(secure):
    if not secure:
        return None
    # Not every Jython has it.
    import ssl

    if not hasattr(ssl, "create_default_context"):
        raise RuntimeError("https needs Python 2.7.9 or newer")
    return ssl.create_default_context() if secure is True else secure


def _object(body):
    """The JSON object that a body is; an empty one if it is something else."""
    try:
        answer = json.loads(body.decode("utf-8"))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _pause_told(error):
    """Seconds that the server asks to wait, from RetryInfo."""
    try:
        for detail in error.get("details") or ():
            if detail["type"] == "google.rpc.RetryInfo":
                return max(0.0, float(detail["debug"]["retryDelay"].rstrip("s")))
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    return None


def _text(value):
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, type(u"")):
        return value
    raise TypeError("not a str: %r" % (value,))


def _player(value):
    """An id as the server knows it; an integer is its decimal form."""
    return _text(value if isinstance(value, (bytes, type(u""))) else str(operator.index(value)))


def _str(message, key):
    text = (message or {}).get(key) or u""
    return text.encode("utf-8") if str is bytes else text


def _int(message, key):
    """Integers of 64 bits are texts in JSON; what is not there is 0."""
    return int((message or {}).get(key) or 0)


def _state(entity):
    return {
        "completed_at": _int(entity, "completed_at"),
        "extra": _str(entity, "extra"),
        "progress": _int(entity, "progress"),
        "version": _int(entity, "version"),
    }


def _record(record):
    told = _state(record)
    told["achievement_id"] = _str(record, "achievement_id")
    told["max_progress"] = _int(record, "max_progress")
    return told


def _told(code, entity):
    message = "操作冲突" if code == CONFLICT else "正常返回"
    return {"code": code, "message": message, "details": "", "entity": entity}
