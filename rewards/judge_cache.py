"""Replies of judges on disk, by the hash of the request. In: a key. Out: the reply paid for, or None.

One file per reply, which appears by one rename, so that several replicas and runs may share a folder. Each
has a checksum: a file that is torn or damaged is a miss, and is written again. Files are not fsynced: a crash
of the machine may cost the last replies a second call. Used by `rewards.judge`.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rewards.model_calls import GenerateReply
from rollouts.files import PARTIAL_SUFFIX

VERSION: Final = 1
_FIELDS: Final = {
    "text": str,
    "finish_reason": str,
    "num_prompt_tokens": int,
    "num_completion_tokens": int,
}


class ReplyCache:
    """The replies in a folder, which is made if it is missing. An empty `folder` keeps nothing."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> GenerateReply | None:
        """The reply stored under a key (64 hex digits); None if there is none that is whole."""
        if self._folder is None:
            return None
        try:
            digest, _, content = self._path(self._folder, key).read_bytes().partition(b"\n")
            # A damaged reply would be a wrong score in every later run, so it is checked in every read.
            if hashlib.sha256(content).hexdigest().encode() != digest:
                return None
            entry = json.loads(content)
            if entry["version"] != VERSION or entry["key"] != key:
                return None
            stored = {name: entry["reply"][name] for name in _FIELDS}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # The file may have been written by a version with other fields.
        if not all(type(stored[name]) is kind for name, kind in _FIELDS.items()):
            return None
        return GenerateReply(**stored)

    def write(self, key: str, reply: GenerateReply) -> None:
        """Store a reply. A full disk is no reason to stop: the reply is then not stored."""
        if self._folder is None:
            return
        fields = asdict(reply)
        entry = {"version": VERSION, "key": key, "reply": {name: fields[name] for name in _FIELDS}}
        content = json.dumps(entry, ensure_ascii=True, allow_nan=False).encode()
        path = self._path(self._folder, key)
        # A name of its own: two replicas, on two machines perhaps, may store the same reply at the same time.
        partial = path.with_name(f".{key}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        assert len(key) == 64, "a key is a SHA-256 in hex"
        return folder / key[:2] / f"{key}.json"
