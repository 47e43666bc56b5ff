"""Keys: derivation, the file in both forms, what goes wrong and how it is said."""

from __future__ import annotations

import copy
import hashlib
import hmac
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.configs.errors import KeyFileError
from keyface.pipeline.people.key import Key, is_locked

SECRET = bytes(range(32))


def _hkdf(secret: bytes, info: bytes, n_bytes: int) -> bytes:
    """RFC 5869 written out, to check the library's use against."""
    prk = hmac.new(b"keyface/v1", secret, hashlib.sha256).digest()
    out, block, i = b"", b"", 1
    while len(out) < n_bytes:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:n_bytes]


@given(secret=st.binary(min_size=32, max_size=32), n_bytes=st.integers(1, 300))
def test_derivation_is_hkdf_sha256(secret: bytes, n_bytes: int) -> None:
    assert Key(secret).derive("a-use/v1", n_bytes) == _hkdf(secret, b"a-use/v1", n_bytes)


def test_derivation_is_fixed_for_ever() -> None:
    key = Key(SECRET)
    assert key.derive("identity-rotation/v1", 32).hex() == (
        "6d935084a78ea139be97a578f73dd318356b47698eb6613dd4e978982fbb03e0"
    )
    assert key.fingerprint == "98a666aa"


@given(secret=st.binary(min_size=32, max_size=32), bit=st.integers(0, 255))
def test_one_flipped_bit_changes_everything(secret: bytes, bit: int) -> None:
    flipped = bytearray(secret)
    flipped[bit // 8] ^= 1 << bit % 8
    a, b = Key(secret).derive("a-use/v1", 256), Key(flipped).derive("a-use/v1", 256)
    n_same = sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))
    assert 850 < n_same < 1200  # of 2048 bits, about half


def test_purposes_are_separate() -> None:
    key = Key(SECRET)
    assert key.derive("one-use/v1") != key.derive("one-use/v2") != key.derive("other-use/v1")


@pytest.mark.parametrize("purpose", ["", "no version", "x", "Upper/v1", "x/v", "x/v1 "])
def test_a_purpose_without_version_is_refused(purpose: str) -> None:
    with pytest.raises(ValueError, match="identity-rotation/v1"):
        Key(SECRET).derive(purpose)


@pytest.mark.parametrize("n_bytes", [0, -1, 8161])
def test_a_length_out_of_range_is_refused(n_bytes: int) -> None:
    with pytest.raises(ValueError, match="8160"):
        Key(SECRET).derive("a-use/v1", n_bytes)


@pytest.mark.parametrize("n_bytes", [0, 31, 33])
def test_a_key_is_32_bytes(n_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"got {n_bytes} bytes, want 32"):
        Key(bytes(n_bytes))


def test_a_key_does_not_show_or_travel() -> None:
    key = Key(SECRET)
    assert repr(key) == str(key) == "Key(<secret>)"
    assert SECRET.hex() not in f"{key!r}{key}"
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled or copied"):
            take(key)


def test_close_wipes() -> None:
    key = Key(SECRET)
    inner = key._secret
    with key:
        key.derive("a-use/v1")
    assert not any(inner)
    assert repr(key) == "Key(<closed>)"
    with pytest.raises(ValueError, match="closed"):
        key.derive("a-use/v1")
    key.close()


def test_generated_keys_differ() -> None:
    assert len({Key.generate().fingerprint for _ in range(20)}) == 20


# Files.


def test_file_keeps_the_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = Key.generate()
    key.save(path)
    loaded = Key.load(path)
    assert loaded.derive("a-use/v1") == key.derive("a-use/v1")
    assert loaded.warnings == ()
    assert not is_locked(path)
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
def test_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Key.generate().save(tmp_path / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_bare_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    assert Key.load(path).derive("a-use/v1") == Key(SECRET).derive("a-use/v1")
    assert not is_locked(path)


def test_text_file_survives_an_editor_that_writes_crlf(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for passphrase in (None, "pass"):
        Key(SECRET).save(path, passphrase=passphrase, replace=True)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert Key.load(path, passphrase).fingerprint == Key(SECRET).fingerprint
        assert is_locked(path) == (passphrase is not None)


def test_passphrase_locks_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Key(SECRET).save(path, passphrase="päss phrase")
    assert b"fingerprint" not in path.read_bytes()
    assert is_locked(path)
    assert Key.load(path, "päss phrase").fingerprint == Key(SECRET).fingerprint
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        Key.load(path, "pass phrase")
    with pytest.raises(KeyFileError, match="locked and no passphrase"):
        Key.load(path)


def test_two_locked_files_of_one_key_share_nothing(tmp_path: Path) -> None:
    lines = []
    for name in "ab":
        Key(SECRET).save(tmp_path / name, passphrase="p")
        lines.append((tmp_path / name).read_text().splitlines()[2:])
    assert not set(lines[0]) & set(lines[1])


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_a_changed_locked_file_does_not_open(tmp_path: Path, line: int) -> None:
    path = tmp_path / "key"
    Key(SECRET).save(path, passphrase="p")
    lines = path.read_text().splitlines()
    if line == 1:
        lines[1] = lines[1].replace("t=3", "t=2")
    else:
        name, value = lines[line].split(": ")
        lines[line] = f"{name}: {'B' if value[0] == 'A' else 'A'}{value[1:]}"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(KeyFileError, match=r"does not open|damaged"):
        Key.load(path, "p")


def test_costs_that_would_take_all_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Key(SECRET).save(path, passphrase="p")
    path.write_text(path.read_text().replace("m=65536", "m=9999999"))
    with pytest.raises(KeyFileError, match="out of range"):
        Key.load(path, "p")


def test_nothing_is_overwritten_silently(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = Key.generate()
    first.save(path)
    with pytest.raises(KeyFileError, match="already exists"):
        Key.generate().save(path)
    assert Key.load(path).fingerprint == first.fingerprint
    second = Key.generate()
    second.save(path, replace=True)
    assert Key.load(path).fingerprint == second.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_saving_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be written"):
        Key.generate().save(tmp_path / "none" / "key")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"x", "has 1 bytes; want 32"),
        (bytes(31), "has 31 bytes; want 32"),
        (bytes(33), "has 33 bytes; want 32"),
        (bytes(5000), "has over 4096 bytes; want 32"),
        (b"keyface key v2\nlock: none\nsecret: AAAA\n", "has version '2'; this program reads 1"),
        (b"keyface key v1\n", r"is damaged \(lock\)"),
        (b"keyface key v1\nlock: none\nfingerprint: 0\nsecret: AAAA\n", "holds 3 bytes, want 32"),
        (b"keyface key v1\nlock: none\nfingerprint: 0\nsecret: ~~~\n", "not base64"),
        (b"keyface key v1\nlock: rot13\nsalt: AA==\n", "lock 'rot13' is not known"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(KeyFileError, match=said) as caught:
        Key.load(path)
    assert str(path) in caught.value.problem
    assert caught.value.way_out
    assert "\n" not in str(caught.value)


def test_a_damaged_open_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Key(SECRET).save(path)
    path.write_text(path.read_text().replace("secret: AA", "secret: BA"))
    with pytest.raises(KeyFileError, match="fingerprint does not match"):
        Key.load(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="does not exist"):
        Key.load(tmp_path / "none")
    with pytest.raises(KeyFileError, match="is a folder"):
        Key.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(0)
    with pytest.raises(KeyFileError, match="cannot be read"):
        Key.load(path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
@pytest.mark.parametrize(("mode", "n_warnings"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o644, 1)])
def test_a_file_that_others_can_read_warns(tmp_path: Path, mode: int, n_warnings: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(mode)
    warnings = Key.load(path).warnings
    assert len(warnings) == n_warnings
    assert all("chmod 600" in warning for warning in warnings)


def test_a_file_that_is_not_random_warns(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(32))
    path.chmod(0o600)
    assert "does not look random" in Key.load(path).warnings[0]


@settings(max_examples=examples(60))
@given(data=st.binary(max_size=200).filter(lambda data: len(data) != 17))  # 17 would make a bare key
def test_no_content_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-key"
    path.write_bytes(b"keyface key v1\n" + data)
    with pytest.raises(KeyFileError):
        Key.load(path, "p")
