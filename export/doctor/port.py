"""Who listens on a port, and which one is free."""

from __future__ import annotations

import socket
from contextlib import suppress

import psutil


def holder(port: int) -> str | None:
    """Name and id of the process that listens on a port; None where the system does not tell.

    Linux and Windows tell of all users' processes to an administrator, macOS only then.
    """
    with suppress(psutil.Error, OSError, RuntimeError):
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and connection.laddr.port == port and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None


def free_port(after: int) -> int:
    """The next port that a server on this machine can listen on; 0 where there is none."""
    for port in range(after + 1, 65536):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return 0
