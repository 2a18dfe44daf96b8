"""The arrays of a safetensors file, read from the disk as they are touched."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only arrays backed by the file.

    Raises:
        ValueError: the header is not whole, or the data are shorter than it says.
    """
    dtypes = {"I64": np.int64, "I32": np.int32, "F32": np.float32}
    with open(path, "rb") as stream:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = np.dtype(dtypes[entry["dtype"]])
        array = np.frombuffer(buffer, dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
        arrays[name] = array.reshape(entry["shape"])
    return arrays
