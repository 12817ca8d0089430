"""Files of weights that are not dmray's checkpoints, read without running code of theirs."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dmray.errors import CheckpointError, StorageError
from dmray.records.disk import open_file
from dmray.registry import short

CONFIG, SAFETENSORS = "config.json", "model.safetensors"  # of a model's folder, on the Hugging Face Hub and here
_LARGEST_HEADER = 2**26
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file: the length of a header, the header in JSON, then the numbers.

    Raises:
        CheckpointError: it is no such file, or a damaged one.
    """
    content = read_weights(path)
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(_LARGEST_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length:,} bytes")
        header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], _DTYPES[entry["dtype"]]
            size = prod(shape) * torch.empty((), dtype=dtype).element_size()
            if not 0 <= begin <= end <= len(data) or end - begin != size or any(each < 0 for each in shape):
                raise ValueError(f"the place of '{short(name)}' is not in the file")
            numbers = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype) if size else torch.empty(0, dtype=dtype)
            found[name] = numbers.reshape(shape)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as cause:
        raise CheckpointError(f"{path}: not a .safetensors file ({cause}); download it again") from None
    return found


def read_weights(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        with open_file(path) as stream:
            return stream.read()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (StorageError, OSError) as cause:
        raise CheckpointError(str(cause)) from cause
