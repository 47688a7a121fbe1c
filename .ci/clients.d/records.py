"""Records of TLS 1.3, decrypted by the secrets that the client exports: which number each one was sealed with."""

import hmac
import re
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

SUITES = {
    "TLS_CHACHA20_POLY1305_SHA256": ("sha256", ChaCha20Poly1305),
    "TLS_AES_256_GCM_SHA384": ("sha384", AESGCM),
}


def secret_of(keylog, label):
    with open(keylog) as file:
        found = re.findall(rf"^{label} [0-9a-f]+ ([0-9a-f]+)$", file.read(), re.MULTILINE)
    assert len(found) == 1, f"{label} is exported once, not {len(found)} times"
    return bytes.fromhex(found[0])


def expand(secret, label, length, digest):
    full = b"tls13 " + label
    info = struct.pack(">HB", length, len(full)) + full + b"\0"
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = hmac.new(secret, block + info + bytes([number]), digest).digest()
        out, number = out + block, number + 1
    return out[:length]


def split(stream):
    """The records of a direction."""
    at = 0
    while at < len(stream):
        length = struct.unpack(">H", stream[at + 3 : at + 5])[0]
        yield stream[at : at + 5], stream[at + 5 : at + 5 + length]
        at += 5 + length
    assert at == len(stream), "the last record is whole"


def count_sealed(stream, secret, suite):
    """Opens all records of a direction that these keys sealed: number 0 first, each number once, none left out. Returns how
    many there are."""
    digest, aead = SUITES[suite]
    key, iv = expand(secret, b"key", 32, digest), expand(secret, b"iv", 12, digest)
    cipher, number = aead(key), 0
    for head, sealed in split(bytes(stream)):
        if head[0] != 23:
            assert number == 0, "a record that is not encrypted, behind one that is"
            continue
        nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
        try:
            cipher.decrypt(nonce, sealed, head)
        except InvalidTag:
            # The records of the handshake have keys of their own.
            assert number == 0, f"the record behind number {number - 1} was not sealed with number {number}"
            continue
        number += 1
    return number
