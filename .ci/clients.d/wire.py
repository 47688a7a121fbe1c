"""Frames of Moorline's protocol, as much as a small client needs (docs/protocol.md, section 12)."""

import struct

HELLO, WELCOME, PING, PONG = 1, 2, 5, 6


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def frame(command, body=b"", klass=0, seq=0, ack=0):
    return struct.pack(">BBBBIII", 0xA1, command, 0, klass, len(body), seq, ack) + body


def hello(uid):
    body = field(1, 1) + field(2, 1) + field(4, uid.encode()) + field(5, b"d") + field(6, 5)
    return frame(HELLO, body)


def ping():
    return frame(PING, field(1, 30))


class Frames:
    """Joins what comes in pieces, and splits it into frames; batches are opened."""

    def __init__(self):
        self.bytes = bytearray()
        self.all = []

    def feed(self, piece):
        self.bytes += piece
        while len(self.bytes) >= 16:
            _, command, flags, _, length, seq, _ = struct.unpack(">BBBBIII", self.bytes[:16])
            if len(self.bytes) < 16 + length:
                return
            body = bytes(self.bytes[16 : 16 + length])
            del self.bytes[: 16 + length]
            if flags & 8:
                inner = Frames()
                inner.feed(body)
                self.all += inner.all
            else:
                self.all.append((command, seq, body))

    def count(self, command):
        return sum(1 for known, _, _ in self.all if known == command)
