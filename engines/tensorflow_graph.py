"""Reads a frozen TensorFlow graph (GraphDef, protocol buffers) without TensorFlow.

Only what a graph of constants and plain layers needs is read: names, operations, inputs, whole numbers, texts
and float32 or int32 tensors. Field numbers are those of graph.proto, node_def.proto, attr_value.proto and
tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {1: "<f4", 3: "<i4", 9: "<i8"}


@dataclass(frozen=True)
class GraphNode:
    """One node: its inputs (names without ":0"), and its attributes still as bytes."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    raw: dict[str, memoryview]

    def text(self, attribute: str) -> str:
        """A text attribute, such as padding."""
        return bytes(_only(self.raw[attribute], 2)).decode("ascii")

    def numbers(self, attribute: str) -> list[int]:
        """A list of whole numbers, such as strides."""
        packed = _only(_only(self.raw[attribute], 1), 3)
        return list(_varints(packed))

    def number(self, attribute: str) -> float:
        """A floating-point attribute."""
        return float(struct.unpack("<f", _only(self.raw[attribute], 4))[0])

    def tensor(self) -> npt.NDArray[Any]:
        """The value of a constant."""
        shape: list[int] = []
        kind, content = 1, b""
        single: list[float] = []
        for number, value in _fields(_only(self.raw["value"], 8)):
            if number == 1:
                kind = value
            elif number == 2:
                shape = [next((v for n, v in _fields(d) if n == 1), 0) for k, d in _fields(value) if k == 2]
            elif number == 4:
                content = bytes(value)
            elif number == 5:
                single += (
                    [struct.unpack("<f", value)[0]]
                    if len(value) == 4
                    else np.frombuffer(value, "<f4").tolist()
                )
            elif number in (7, 10):
                single += [value] if isinstance(value, int) else list(_varints(value))
        if content:
            return np.frombuffer(content, _DTYPES[kind]).reshape(shape)
        values = np.array(single, _DTYPES[kind])
        return np.full(shape, values[0]) if values.size == 1 else values.reshape(shape)


def read_graph(content: bytes) -> list[GraphNode]:
    """All nodes, in the order of the file.

    Raises:
        ValueError, IndexError, KeyError, struct.error: it is no GraphDef.
    """
    nodes = []
    for number, value in _fields(memoryview(content)):
        if number != 1:
            continue
        name = operation = ""
        inputs: list[str] = []
        raw: dict[str, memoryview] = {}
        for key, part in _fields(value):
            if key == 1:
                name = bytes(part).decode("utf-8")
            elif key == 2:
                operation = bytes(part).decode("ascii")
            elif key == 3:
                inputs.append(bytes(part).decode("utf-8").removesuffix(":0").removeprefix("^"))
            elif key == 5:
                entry = dict(_fields(part))
                raw[bytes(entry[1]).decode("utf-8")] = entry[2]
        nodes.append(GraphNode(name, operation, tuple(inputs), raw))
    return nodes


def _fields(buffer: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): whole numbers as int, everything else as bytes."""
    at = 0
    while at < len(buffer):
        tag, at = _varint(buffer, at)
        match tag & 7:
            case 0:
                value, at = _varint(buffer, at)
                yield tag >> 3, value
            case 1 | 5 as wire:
                size = 8 if wire == 1 else 4
                yield tag >> 3, buffer[at : at + size]
                at += size
            case 2:
                size, at = _varint(buffer, at)
                if at + size > len(buffer):
                    raise ValueError("a field is longer than its message")
                yield tag >> 3, buffer[at : at + size]
                at += size
            case wire:
                raise ValueError(f"wire type {wire} is not known")


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _only(buffer: memoryview, wanted: int) -> Any:
    for number, value in _fields(buffer):
        if number == wanted:
            return value
    raise KeyError(wanted)
