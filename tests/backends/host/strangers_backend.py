#!/usr/bin/python3
"""A backend written from backends/host/wire.hpp and messages/backend.proto alone, with nothing of ours: it knows one VM,
which runs, and reads and writes the few protobuf fields that it needs by hand."""

import socket
import struct

engine = socket.socket(fileno=3)


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def fields(content):
    at = 0

    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    out = {}
    while at < len(content):
        key = take()
        size = take()
        if key & 7 == 2:
            out[key >> 3] = content[at : at + size]
            at += size
        else:
            out[key >> 3] = size
    return out


def say(content):
    engine.sendall(struct.pack(">I", len(content)) + content)


def read(size):
    return engine.recv(size, socket.MSG_WAITALL)


say(message(3, message(1, b"strange") + number(2, 2)))  # BackendReady
while header := read(4):
    call = fields(read(struct.unpack(">I", header)[0]))
    if 4 in call:  # inspect
        answer = message(3, number(1, 3) + message(12, b"a stranger's VMM"))  # VM_STATE_RUNNING
    elif 10 in call:  # list
        answer = message(5, message(1, b"the-one"))
    else:
        answer = message(2, message(1, b"unsupported") + message(2, b"a stranger's backend only inspects and lists"))
    say(message(1, number(1, call[1]) + answer))
