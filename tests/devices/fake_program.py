"""What the fake devices run: a "program" is any bytes, and its video is the latents over and over,
plus a number that only these bytes have. So a clip in another order, another type of number or
another program is another video, and no process has to load a runtime. The standard library alone:
the fake commands import it too.
"""

import struct
import zlib
from pathlib import Path

CODES = {"float16": "e", "float32": "f"}


def video_of(program: Path, latents: bytes, numbers: int, given="float32", made="float32") -> bytes:
    """`numbers` values of type `made`, of one clip's latents of type `given`, little endian."""
    parts = sorted(program.rglob("*")) if program.is_dir() else [program]
    offset = zlib.crc32(b"".join(part.read_bytes() for part in parts if part.is_file())) / 2**32
    code = CODES[given]
    values = [value + offset for (value,) in struct.iter_unpack(f"<{code}", latents)]
    repeated = (values * (numbers // len(values) + 1))[:numbers]
    return struct.pack(f"<{numbers}{CODES[made]}", *repeated)
