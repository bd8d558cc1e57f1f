"""Weights in int8: rounds a checkpoint's kernels while they are read, block by block.

See ``pdgen.models.linear`` for the rule and for the parameters that it takes. All others keep their dtypes.
"""

import dataclasses
import math

import numpy as np

from pdgen.checkpoints import stream
from pdgen.checkpoints.errors import CheckpointError
from pdgen.checkpoints.mapping import Place, places
from pdgen.checkpoints.pdgen_checkpoint import Content
from pdgen.models.linear import LEVELS, scale_name

_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)


def quantize(kernel: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a kernel [*out, *in] of any float dtype, which has this number of output axes, to int8.

    Returns:
      int8 values [*out, *in] within [-127, 127], and float32 scales [*out]. An output channel of zeros has scale 0;
      one with a value that is not finite has a scale that is not finite.
    """
    wide = kernel.astype(np.float32)
    inputs = tuple(range(outputs, wide.ndim))
    scale = np.abs(wide).max(axis=inputs) / np.float32(LEVELS)
    divisor = np.expand_dims(np.where(np.isfinite(scale) & (scale > 0), scale, 1), inputs)
    # A scale below 1e-38 has few bits, so that a quotient may exceed 127.
    rounded = np.clip(np.rint(np.nan_to_num(wide / divisor)), -LEVELS, LEVELS)
    return rounded.astype(np.int8), scale


def quantize_content(content: Content, read: stream.Read) -> tuple[Content, stream.Read]:
    """Return the content of an int8 checkpoint and its ``read``, from those of a float checkpoint.

    The new ``read`` raises CheckpointError where a kernel holds a value that is not finite. It reads kernels twice, for
    their values and for their scales.
    """
    where = places(content.config, int8=True)
    tensors, sources = [], {}
    for place, dtype, file in content.tensors:
        scale = where.get(scale_name(place.name))
        tensors.append((place, _INT8 if scale else dtype, file))
        if scale:
            tensors.append((scale, _FLOAT32, file))
            sources |= {place.name: (place, dtype), scale.name: (place, dtype)}

    def read_int8(place: Place, start: int, rows: np.ndarray) -> None:
        if place.name not in sources:
            read(place, start, rows)
            return
        source, dtype = sources[place.name]
        outputs = len(where[scale_name(source.name)].slot)
        step = stream.block_rows(source.slot, dtype.itemsize)
        for first in range(0, len(rows), step):
            count = min(step, len(rows) - first)
            values = np.empty((count, *source.slot[1:]), dtype)
            read(source, start + first, values)
            rounded, scale = quantize(values, outputs)
            if not math.isfinite(scale.sum()):
                raise CheckpointError(f"{source.name} holds values that are not finite, which int8 cannot represent")
            rows[first : first + count] = rounded if place.name == source.name else scale

    return dataclasses.replace(content, tensors=tensors), read_int8
