"""The IDX format of MNIST and its kin.

Two zero bytes, a byte for the type, a byte for the number of dimensions, the dimensions as big-endian 32-bit unsigned
integers, then the values, big-endian, the last dimension fastest.
Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", section "The IDX file format".
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from torch import Tensor

from dnnkit.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(content: bytes | bytearray, name: str) -> Tensor:
    """The tensor that an IDX file holds, with the file's dtype; a `bytearray` of single-byte values is not copied.

    `name` says which file it is in the DataError raised for a header that is not IDX or does not fit the length.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES or content[3] == 0:
        begins = bytes(content[:4]).hex(" ") or "nothing"
        raise DataError(f"{name} is not an IDX file: it begins with {begins}, expected 00 00, a known type and at least one dimension")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{name} ends inside its IDX header: expected at least {start} bytes, found {len(content)}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    dtype = np.dtype(_TYPES[content[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(f"{name} does not fit its IDX header: shape {shape} of {dtype.name} takes {expected} bytes, found {len(content)}")
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    native = values.astype(dtype.newbyteorder("="), copy=not values.flags.writeable)
    return torch.from_numpy(native)
