"""Small files in the public formats, and records in a form that is easy to compare."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PilImage

from pdgen.sequence.images import decode_image
from pdgen.sequence.trajectory import Image
from pdgen.synthesis.importers.outcome import SkippedSample

COLORS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "black", "white")


def picture(color, format="PNG", size=(8, 6)):
    """Return a picture file of one colour."""
    buffer = io.BytesIO()
    PilImage.new("RGB", size, color).save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return buffer.getvalue()


def hub(data):
    """Return an image as the data sets library stores it."""
    return {"bytes": data, "path": None}


def write_parquet(path, rows):
    """Write a file with the rows' keys as columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_tar(path, samples):
    """Write a webdataset archive of {key: {suffix: bytes}}."""
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def color_of(png):
    """Return the name in COLORS nearest to the middle pixel."""
    image = decode_image(png)
    pixel = image.getpixel((image.width // 2, image.height // 2))
    known = {c: PilImage.new("RGB", (1, 1), c).getpixel((0, 0)) for c in COLORS}
    return min(known, key=lambda c: sum(abs(a - b) for a, b in zip(known[c], pixel)))


def seen(record):
    """List every segment as (stage, words or colour, target)."""
    return [(s.stage, color_of(s.png) if isinstance(s, Image) else s.text, s.target) for s in record.segments]


def split(outcomes):
    """Return (records, skipped) of an importer's outcomes."""
    outcomes = list(outcomes)
    skipped = [o for o in outcomes if isinstance(o, SkippedSample)]
    return [o for o in outcomes if not isinstance(o, SkippedSample)], skipped
