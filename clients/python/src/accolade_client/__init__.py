"""A client of Accolade.

`Client` waits, `AsyncClient` awaits; both retry what may pass under one request id, so that an
update is counted once, remember the versions they have seen, and watch over lost connections.
`accolade_client.modsdk` has the two calls of NetEase's Minecraft ModSDK.
"""

from ._aio import AsyncClient
from ._rules import CONFLICT, CONFLICTS_MAX, STORED
from ._sync import Client

__all__ = ["CONFLICT", "CONFLICTS_MAX", "STORED", "AsyncClient", "Client"]
