"""A baseline JPEG writer for layouts that no common encoder makes: any sampling of 1 to 4 components, any division into
scans, with the markers asked of it. Standard Huffman tables; written for tests, not for speed."""

import struct

import numpy as np

ZIGZAG = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
          28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61,
          54, 47, 55, 62, 63]
# Annex K.3, luma: counts of codes by length, and their symbols.
DC = ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], list(range(12)))
AC = ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], list(bytes.fromhex(
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a4344"
    "45464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4"
    "b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa")))


def codes(table):
    """Symbol -> (code, length)."""
    made, code, symbols = {}, 0, iter(table[1])
    for length, count in enumerate(table[0], 1):
        for _ in range(count):
            made[next(symbols)] = (code, length)
            code += 1
        code <<= 1
    return made


class Bits:
    def __init__(self):
        self.text = []

    def put(self, value, size):
        if size:
            self.text.append(format(value, f"0{size}b"))

    def value(self, value):
        """A signed value, without its size."""
        size = abs(value).bit_length()
        self.put(value if value >= 0 else value + (1 << size) - 1, size)

    def bytes(self):
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        return bytes(int(text[at:at + 8], 2) for at in range(0, len(text), 8)).replace(b"\xff", b"\xff\x00")


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def coefficients(plane, quantisation):
    """Quantised coefficients (rows, columns, 64) of a plane of whole blocks."""
    k, n = np.mgrid[0:8, 0:8]
    basis = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos((2 * n + 1) * k * np.pi / 16)
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane.reshape(rows, 8, columns, 8).swapaxes(1, 2).astype(float) - 128
    return np.round(basis @ blocks @ basis.T / quantisation.reshape(8, 8)).astype(int).reshape(rows, columns, 64)


def jpeg(components, sampling, scans=None, restart=0, markers=(), ids=None, tables=True, step=3, table_between=False):
    """A JPEG file of `components`, full-size planes (H, W), each sampled by its (h, v) of `sampling`.

    scans            lists of components coded together; default: all in one
    restart          MCUs between restart markers
    markers          segments after the start of the file
    ids              identifiers of the components; default: from 1
    tables           whether Huffman tables are in the file
    step             scale of the quantisation
    table_between    writes another quantisation table of the same number before every scan
    """
    height, width = components[0].shape
    ids = ids or list(range(1, len(components) + 1))
    scans = scans or [list(range(len(components)))]
    most = [max(factors[axis] for factors in sampling) for axis in (0, 1)]
    mcus = [-(-width // (8 * most[0])), -(-height // (8 * most[1]))]
    y, x = np.mgrid[0:8, 0:8]

    def quantisation(scan):
        return (step + (step + 2 * scan * table_between) * (x + y) // 2).astype(int).flatten()

    def quantisation_segment(scan):
        return segment(0xDB, b"\0" + bytes(int(quantisation(scan)[at]) for at in ZIGZAG))

    blocks = {}
    for scan, members in enumerate(scans):
        for index in members:
            (h, v), plane = sampling[index], components[index]
            padded = np.pad(plane, ((0, mcus[1] * 8 * most[1] - height), (0, mcus[0] * 8 * most[0] - width)), "edge")
            across, down = most[0] // h, most[1] // v
            small = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across).mean((1, 3))
            blocks[index] = coefficients(small, quantisation(scan))

    out = b"\xff\xd8" + b"".join(markers) + quantisation_segment(0)
    frame = struct.pack(">BHHB", 8, height, width, len(components))
    out += segment(0xC0, frame + b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, sampling)))
    if tables:
        out += segment(0xC4, b"\0" + bytes(DC[0] + DC[1]) + b"\x10" + bytes(AC[0] + AC[1]))
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    for scan, members in enumerate(scans):
        if table_between and scan:
            out += quantisation_segment(scan)
        head = bytes([len(members)]) + b"".join(bytes([ids[index], 0]) for index in members) + b"\0\x3f\0"
        out += segment(0xDA, head) + scan_data(members, blocks, sampling, most, mcus, (width, height), restart)
    return out + b"\xff\xd9"


def scan_data(members, blocks, sampling, most, mcus, size, restart):
    dc, ac = codes(DC), codes(AC)
    alone = len(members) == 1
    if alone:
        h, v = sampling[members[0]]
        mcus = [-(-size[axis] * factor // (8 * most[axis])) for axis, factor in ((0, h), (1, v))]
    out, bits, before, count = b"", Bits(), dict.fromkeys(members, 0), 0
    for row in range(mcus[1]):
        for column in range(mcus[0]):
            if restart and count and count % restart == 0:
                out += bits.bytes() + bytes([0xFF, 0xD0 + (count // restart - 1) % 8])
                bits, before = Bits(), dict.fromkeys(members, 0)
            count += 1
            for index in members:
                h, v = (1, 1) if alone else sampling[index]
                for down in range(v):
                    for across in range(h):
                        block = blocks[index][row * v + down, column * h + across]
                        put_block(bits, block, before[index], dc, ac)
                        before[index] = int(block[0])
    return out + bits.bytes()


def put_block(bits, block, before, dc, ac):
    difference = int(block[0]) - before
    bits.put(*dc[abs(difference).bit_length()])
    bits.value(difference)
    run = 0
    for at in ZIGZAG[1:]:
        value = int(block[at])
        if value == 0:
            run += 1
            continue
        while run > 15:
            bits.put(*ac[0xF0])
            run -= 16
        bits.put(*ac[run << 4 | abs(value).bit_length()])
        bits.value(value)
        run = 0
    if run:
        bits.put(*ac[0])
