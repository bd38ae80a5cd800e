"""Cuts off shared libraries what no program loads, debug information above all: `strip.py FILE …`.

The strip of binutils does the same; Python's slim images do not have it.
"""

import struct
import sys
from pathlib import Path

START = b"\x7fELF\x02\x01"  # of a 64-bit little-endian ELF file
SECTIONS_AT, SECTIONS = 0x28, 0x3C  # in its header: where section headers are; how many, and which has their names
SEGMENTS_AT, SEGMENTS = 0x20, 0x36  # where segments are described; bytes of each description, how many
SEGMENT = struct.Struct("<8xQ16xQ16x")  # offset, bytes in the file


def strip(path: Path) -> int:
    """Ends the file behind its last segment; section headers, which only linkers read, go. Returns its bytes."""
    data = bytearray(path.read_bytes())
    if data[: len(START)] != START:
        raise SystemExit(f"{path} is no 64-bit ELF file.")
    (first,) = struct.unpack_from("<Q", data, SEGMENTS_AT)
    each, number = struct.unpack_from("<HH", data, SEGMENTS)
    end = max(sum(SEGMENT.unpack_from(data, first + i * each)) for i in range(number))
    struct.pack_into("<Q", data, SECTIONS_AT, 0)
    struct.pack_into("<HH", data, SECTIONS, 0, 0)
    path.write_bytes(data[:end])
    return end


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {strip(Path(name)) >> 20} MB")
