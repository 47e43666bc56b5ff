"""The keys of an evaluation, all derived from one key, so that its virtual faces say nothing about that key.

Conditions, as IVFG section 5.3.1 names them: `shared` is Set B, one key for all people; `own` is Set A, a key
for each person. `bits-N` is a key of N bits, expanded by HKDF, and `bits-N-flipped` the same with one bit
turned over (KFAAR section VI-B, key length). `book` is the shared key with an identity book beside it.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyface.pipeline.people.key import KEY_BYTES, Key

KeyLength = Literal[8, 128, 256]
KEY_LENGTHS: tuple[KeyLength, ...] = get_args(KeyLength)
SHARED, OWN, RECOVERED, BOOK = "shared", "own", "recovered", "book"


class EvaluationKeys:
    """Makes the key of each condition and person. The caller closes the keys that it is given.

    Args:
        master: the user's key; kept, not closed here.
    """

    def __init__(self, master: Key) -> None:
        self._master = master

    def key(self, condition: str, person: str) -> Key:
        """The key under which a photo of `person` is anonymised.

        Raises:
            ValueError: there is no such condition.
        """
        if condition in (SHARED, BOOK):
            return Key(self._master.derive("evaluation-shared/v1"))
        if condition in (OWN, RECOVERED):
            name = hashlib.sha256(person.encode("utf-8")).hexdigest()
            return Key(self._master.derive(f"evaluation-person-{name}/v1"))
        for n_bits in KEY_LENGTHS:
            if condition in (bits_condition(n_bits), bits_condition(n_bits, is_flipped=True)):
                bits = self._master.derive(f"evaluation-bits-{n_bits}/v1", n_bits // 8)
                return Key(expand_bits(flip_bit(bits, 0) if condition.endswith("flipped") else bits))
        raise ValueError(f"evaluation keys: got condition {condition!r}")


def bits_condition(n_bits: KeyLength, *, is_flipped: bool = False) -> str:
    """Name of the condition of a key length."""
    return f"bits-{n_bits}-flipped" if is_flipped else f"bits-{n_bits}"


def expand_bits(bits: bytes) -> bytes:
    """A short key made into 256 bits: HKDF-SHA256(bits, salt "keyface/v1", info "short-key-N/v1").

    There are then still only 2^N keys: whoever has the program can try them all when N is small.
    """
    info = f"short-key-{8 * len(bits)}/v1".encode("ascii")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=b"keyface/v1", info=info).derive(bits)


def flip_bit(bits: bytes, index: int) -> bytes:
    """`bits` with bit `index` (0: the lowest of the first byte) turned over."""
    changed = bytearray(bits)
    changed[index // 8] ^= 1 << (index % 8)
    return bytes(changed)
