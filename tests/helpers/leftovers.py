"""Finding what a test started: processes by a path only they know, and ports nobody has."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def processes_mentioning(text: str) -> list[int]:
    """Other live processes whose command line or environment holds `text` (a path of the test's own)."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            known = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if state != "Z" and text.encode() in known:
            found.append(int(folder.name))
    return found


def free_ports(count: int) -> list[int]:
    """Ports free on loopback at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports
