"""Seeds derived from what they are for, so that neither order nor timing changes them."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from `parts`, for example (run_seed, submission_index, sample_index).

    Hashed, because engines may give correlated samples for consecutive seeds.
    """
    # The separator keeps (1, 23) and (12, 3) apart.
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
