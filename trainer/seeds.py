"""Seeds: pure functions of what is being seeded, so that neither order nor timing can change them."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from `parts`, for example (run_seed, submission_index, sample_index).

    Hashed, because an engine given neighbouring seeds for neighbouring prompts would share noise among them.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
