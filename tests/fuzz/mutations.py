"""Sound files, damaged where it hurts: cut, flipped, spliced, with other lengths, and with checksums that fit again."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

Repair = Callable[[bytes], bytes]
_LENGTHS = (0, 1, 2, 7, 8, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_LAYOUTS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], repair: Repair | None = None) -> bytes:
    """One of the seeds after one to five mutations; with its checksums made good again, or not."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["cut", "flip", "length", "splice", "repeat", "drop", "swap"]))
        position = draw(st.integers(0, len(data)))
        size = draw(st.integers(1, 64))
        match kind:
            case "cut":
                del data[position:]
            case "flip" if position < len(data):
                data[position] ^= 1 << draw(st.integers(0, 7))
            case "length":
                layout = draw(st.sampled_from(_LAYOUTS))
                number = draw(st.sampled_from(_LENGTHS)) % (1 << 8 * struct.calcsize(layout))
                data[position : position + struct.calcsize(layout)] = struct.pack(layout, number)
            case "splice":
                other = draw(st.sampled_from(seeds))
                start = draw(st.integers(0, len(other)))
                data[position:position] = other[start : start + size]
            case "repeat":
                data[position:position] = data[position : position + size] * draw(st.integers(1, 20))
            case "drop":
                del data[position : position + size]
            case "swap":
                other = draw(st.integers(0, len(data)))
                first, second = data[position : position + 4], data[other : other + 4]
                if len(first) == len(second) == 4:
                    data[position : position + 4], data[other : other + 4] = second, first
    return repair(bytes(data)) if repair and draw(st.booleans()) else bytes(data)


def repair_tar(data: bytes) -> bytes:
    """Headers get the checksum that fits, as far as they can be told: TarFile reads no other."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            blocks[number] = block[:148] + f"{total:06o}\0 ".encode() + block[156:]
    return b"".join(blocks)


def repair_png(data: bytes) -> bytes:
    """Chunks get the checksum that fits, as far as their lengths lead from one to the next."""
    fixed, position = bytearray(data), 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        fixed[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(fixed)
