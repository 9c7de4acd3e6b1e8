"""The kinds of image files that give decoders trouble, small and made here: what `images.py` packs together with Pillow's
pixels. Needs `cjpeg` of libjpeg-turbo (Debian: libjpeg-turbo-progs)."""

import io
import random
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from jpeg import jpeg, segment

JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
LAYOUTS = {
    "444": [(1, 1)] * 3, "422": [(2, 1), (1, 1), (1, 1)], "440": [(1, 2), (1, 1), (1, 1)], "420": [(2, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)], "410": [(4, 2), (1, 1), (1, 1)], "441": [(1, 4), (1, 1), (1, 1)],
    "311": [(3, 1), (1, 1), (1, 1)], "mixed": [(2, 2), (2, 1), (1, 2)], "less_luma": [(1, 1), (2, 2), (2, 2)],
    "less_luma_down": [(2, 1), (1, 2), (1, 2)], "chroma_apart": [(1, 2), (1, 1), (1, 2)],
}
CMYK_LAYOUTS = {
    "cmyk_444": [(1, 1)] * 4, "cmyk_key_more": [(1, 1), (1, 1), (1, 1), (2, 2)],
    "cmyk_420": [(2, 2), (1, 1), (1, 1), (2, 2)],
}
SCRIPTS = {
    "dc_only": "0,1,2: 0-0, 0, 0;",
    "dc_coarse": "0,1,2: 0-0, 0, 1;",
    "some_ac": "0,1,2: 0-0, 0, 0; 0: 1-5, 0, 2;",
    "apart": "0: 0-0, 0, 0; 1: 0-0, 0, 0; 2: 0-0, 0, 0; 0: 1-63, 0, 0; 1: 1-63, 0, 0; 2: 1-63, 0, 0;",
    "refined": "0,1,2: 0-0,0,1; 0: 1-5,0,2; 2: 1-63,0,1; 1: 1-63,0,1; 0: 6-63,0,2; 0: 1-63,2,1; 0,1,2: 0-0,1,0;"
               " 2: 1-63,1,0; 1: 1-63,1,0; 0: 1-63,1,0;",
}


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def planes(image):
    return [np.asarray(band) for band in image.split()]


def ycc(image):
    return planes(image.convert("YCbCr"))


def sampling_kinds(smooth):
    three, four = ycc(smooth), [255 - plane for plane in planes(smooth.convert("CMYK"))]
    for name, layout in LAYOUTS.items():
        yield f"{name}.jpg", jpeg(three, layout, markers=[JFIF])
        yield f"{name}_scan_each.jpg", jpeg(three, layout, [[0], [1], [2]], markers=[JFIF])
    for name in ("420", "440", "410", "less_luma"):
        yield f"{name}_chroma_together.jpg", jpeg(three, LAYOUTS[name], [[0], [1, 2]], markers=[JFIF])
        yield f"{name}_restarts.jpg", jpeg(three, LAYOUTS[name], [[0], [1], [2]], restart=3, markers=[JFIF])
    yield "420_restarts_together.jpg", jpeg(three, LAYOUTS["420"], restart=2, markers=[JFIF])
    yield "444_tables_between.jpg", jpeg(three, LAYOUTS["444"], [[0], [1], [2]], table_between=True)
    for name, layout in CMYK_LAYOUTS.items():
        yield f"{name}.jpg", jpeg(four, layout, markers=[adobe(0)])
        yield f"{name}_scan_each.jpg", jpeg(four, layout, [[0], [1], [2], [3]], markers=[adobe(0)])
    ycck = [255 - plane for plane in three] + [four[3]]
    yield "ycck_420.jpg", jpeg(ycck, CMYK_LAYOUTS["cmyk_420"], markers=[adobe(2)])
    yield "ycck_420_scan_each.jpg", jpeg(ycck, CMYK_LAYOUTS["cmyk_420"], [[0], [1], [2], [3]], markers=[adobe(2)])


def colour_kinds(smooth):
    three, rgb, plain = ycc(smooth), planes(smooth), LAYOUTS["444"]
    four = planes(smooth.convert("CMYK"))
    yield "jfif_adobe0.jpg", jpeg(three, plain, markers=[JFIF, adobe(0)])
    yield "adobe0_jfif.jpg", jpeg(three, plain, markers=[adobe(0), JFIF])
    yield "adobe0.jpg", jpeg(rgb, plain, markers=[adobe(0)])
    yield "adobe1.jpg", jpeg(three, plain, markers=[adobe(1)])
    yield "adobe7.jpg", jpeg(three, plain, markers=[adobe(7)])
    yield "no_marker.jpg", jpeg(three, plain)
    yield "ids_rgb.jpg", jpeg(rgb, plain, ids=list(b"RGB"))
    yield "ids_rgb_jfif.jpg", jpeg(three, plain, ids=list(b"RGB"), markers=[JFIF])
    yield "ids_rgb_adobe1.jpg", jpeg(three, plain, ids=list(b"RGB"), markers=[adobe(1)])
    yield "ids_012.jpg", jpeg(three, plain, ids=[0, 1, 2])
    yield "ids_odd.jpg", jpeg(three, plain, ids=[7, 200, 3])
    yield "grey_adobe0.jpg", jpeg(three[:1], [(2, 2)], markers=[adobe(0)])
    yield "cmyk_no_marker.jpg", jpeg(four, [(1, 1)] * 4)
    yield "cmyk_jfif_adobe2.jpg", jpeg(four, [(1, 1)] * 4, markers=[JFIF, adobe(2)])
    yield "no_tables.jpg", jpeg(three, plain, markers=[JFIF], tables=False)


def cjpeg(image, *options, script=None):
    with tempfile.TemporaryDirectory() as folder:
        if script:
            (Path(folder) / "script").write_text(script)
            options = (*options, "-scans", str(Path(folder) / "script"))
        ppm = io.BytesIO()
        image.save(ppm, "PPM")
        return subprocess.run(["cjpeg", "-quality", "75", *options], input=ppm.getvalue(), capture_output=True,
                              check=True).stdout


def process_kinds(smooth):
    for sampling in ("1x1", "2x1", "1x2", "2x2", "4x1", "3x1", "1x1,2x2,2x2"):
        name = sampling.replace(",", "_")
        yield f"arithmetic_{name}.jpg", cjpeg(smooth, "-sample", sampling, "-arithmetic")
        yield f"progressive_{name}.jpg", cjpeg(smooth, "-sample", sampling, "-progressive")
    yield "arithmetic_progressive.jpg", cjpeg(smooth, "-arithmetic", "-progressive")
    yield "arithmetic_progressive_restarts.jpg", cjpeg(smooth, "-arithmetic", "-progressive", "-restart", "2B")
    yield "progressive_restarts.jpg", cjpeg(smooth, "-progressive", "-restart", "2B")
    yield "grey_progressive.jpg", cjpeg(smooth, "-grayscale", "-progressive")
    yield "optimised.jpg", cjpeg(smooth, "-optimize")
    for name, script in SCRIPTS.items():
        for sampling in ("1x1", "2x2", "1x2"):
            yield f"{name}_{sampling}.jpg", cjpeg(smooth, "-sample", sampling, script=script)
    # An end after some of the scans, and one within a scan.
    whole = cjpeg(smooth, "-sample", "2x2", script=SCRIPTS["refined"])
    starts = [match.start() for match in re.finditer(b"\xff\xda", whole)]
    for scans in (1, 3, 5, 8):
        yield f"ends_after_{scans}_scans.jpg", whole[:starts[scans]] + b"\xff\xd9"
    for scan in (0, 4, 9):
        yield f"ends_in_scan_{scan}.jpg", whole[:starts[scan] + 30] + b"\xff\xd9"


def size_kinds(picture, rng):
    sizes = [(1, 1), (1, 9), (9, 1), (2, 3), (3, 2), (4, 7), (5, 5), (8, 8), (9, 17), (17, 10)]
    for width, height in sizes:
        three = ycc(picture(rng, width, height))
        for name in ("444", "422", "440", "420", "411", "410", "less_luma"):
            yield f"{name}_{width}x{height}.jpg", jpeg(three, LAYOUTS[name], tables=(width == 9))


def end_kinds(smooth):
    file = jpeg(ycc(smooth), LAYOUTS["420"], markers=[JFIF])
    yield "no_end.jpg", file[:-2]
    yield "half_end.jpg", file[:-1]
    yield "other_marker_at_the_end.jpg", file[:-2] + b"\xff\xd3"
    yield "newline_before_the_end.jpg", file[:-2] + b"\n\xff\xd9"
    yield "bytes_after.jpg", file + b"\xff\xd8 and more \xff"
    yield "cut.jpg", file[:-40]
    yield "cut_in_the_tables.jpg", file[:80]
    yield "second_scan_too_many.jpg", file[:-2] + file[file.index(b"\xff\xda"):]
    yield "unknown_marker.jpg", file[:-2] + b"\xff\x02\0\2" + file[-2:]
    yield "lines_counted_later.jpg", file.replace(struct.pack(">H", smooth.height), b"\0\0", 1)


def damaged_kinds(small):
    """Files with a few bytes changed: libjpeg shows most of them. Bytes 0xFF are left alone: a run of them within the data
    takes libjpeg's fast path by surprise, which leaves values in the block that are not in the file."""
    draw = random.Random(20250214)
    three = ycc(small)
    files = [
        ("baseline", jpeg(three, LAYOUTS["420"], markers=[JFIF])),
        ("restarts", jpeg(three, LAYOUTS["422"], restart=1, markers=[JFIF])),
        ("scans", jpeg(three, LAYOUTS["440"], [[0], [1, 2]], markers=[JFIF])),
        ("progressive", cjpeg(small, "-progressive")),
        ("progressive_restarts", cjpeg(small, "-progressive", "-restart", "1B")),
        ("arithmetic", cjpeg(small, "-arithmetic")),
    ]
    for name, file in files:
        data = file.index(b"\xff\xda") + 12
        for number in range(8):
            bytes_ = bytearray(file)
            for _ in range(draw.randrange(1, 4)):
                at = draw.randrange(data, len(file) - 2)
                if 0xFF not in bytes_[at - 1:at + 2]:
                    bytes_[at] = draw.randrange(255)
            if number == 7:
                bytes_[data + 20:data + 20] = b"\xff\xd5"
            yield f"{name}_{number}.jpg", bytes(bytes_)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gif(screen, frame, indices, global_palette=None, local_palette=None, transparent=None):
    """A GIF of one frame (left, top, width, height); its data are written without compression."""
    size = len(global_palette or local_palette or b"\0" * 768) // 3
    bits = max(size.bit_length() - 2, 0)
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, (0x80 | bits) if global_palette else 0, 0, 0) + (global_palette or b"")
    if transparent is not None:
        out += b"!\xf9\4\1\0\0" + bytes([transparent]) + b"\0"
    out += b"," + struct.pack("<HHHHB", *frame, (0x80 | bits) if local_palette else 0) + (local_palette or b"")
    values = [256]
    for at, index in enumerate(indices):
        if at and at % 100 == 0:
            values.append(256)
        values.append(index)
    number = sum(value << 9 * at for at, value in enumerate(values + [257]))
    data = number.to_bytes(-(-9 * (len(values) + 1) // 8), "little")
    out += b"\x08" + b"".join(bytes([len(data[at:at + 255])]) + data[at:at + 255] for at in range(0, len(data), 255))
    return out + b"\0;"


def gif_kinds(small):
    palette = small.quantize(16)
    table = bytes(palette.getpalette()[:48])
    indices, (w, h) = list(palette.tobytes()), small.size
    yield "screen_zero.gif", gif((0, 0), (0, 0, w, h), indices, table)
    yield "screen_smaller.gif", gif((w // 2, h // 2), (0, 0, w, h), indices, table)
    yield "frame_beyond.gif", gif((w, h), (5, 7, w, h), indices, table)
    yield "frame_inside.gif", gif((w + 9, h + 8), (3, 4, w, h), indices, table)
    yield "frame_inside_transparent.gif", gif((w + 9, h + 8), (3, 4, w, h), indices, table, transparent=5)
    yield "local_palette.gif", gif((w, h), (0, 0, w, h), indices, None, table)
    yield "no_palette.gif", gif((w, h), (0, 0, w, h), [16 * index for index in indices])
    yield "colours_beyond_the_palette.gif", gif((w, h), (0, 0, w, h), [index + 9 for index in indices], table)


def bmp(width, height, bits, pixels, header_size, compression=0, extra=b"", palette=b""):
    header = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, bits, compression, len(pixels), 0, 0,
                         len(palette) // 4, 0)
    header = header[:header_size] + b"\0" * (header_size - 40)
    offset = 14 + len(header) + len(extra) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + extra + palette + pixels


def bmp_kinds(small):
    rgb = np.asarray(small)[::-1].astype(np.uint32)
    height, width, _ = rgb.shape

    def rows(values, size):
        out = [row.astype(f"<u{size}").tobytes() for row in values]
        return b"".join(row + b"\0" * (-len(row) % 4) for row in out)

    palette = small.quantize(16)
    table = b"".join(bytes([b, g, r, 0]) for r, g, b in zip(*[iter(palette.getpalette()[:48])] * 3))
    indices = np.asarray(palette)[::-1]
    for size in (40, 64):
        yield f"palette_header_{size}.bmp", bmp(width, height, 8, rows(indices, 1), size, palette=table)
    three = rows(rgb[:, :, ::-1].reshape(height, -1), 1)
    yield "rgb_header_64.bmp", bmp(width, height, 24, three, 64)
    r, g, b = (rgb[:, :, at] for at in range(3))
    five = rows((r >> 3) << 10 | (g >> 3) << 5 | b >> 3, 2)
    yield "16_bits_555.bmp", bmp(width, height, 16, five, 40)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    six = rows((r >> 3) << 11 | (g >> 2) << 5 | b >> 3, 2)
    yield "16_bits_565.bmp", bmp(width, height, 16, six, 40, 3, masks)


def chunk(kind, data, checksum=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or zlib.crc32(kind + data))


def png_chunks(data):
    at, chunks = 8, []
    while at < len(data):
        length = struct.unpack(">I", data[at:at + 4])[0]
        chunks.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    return chunks


def png(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def png_kinds(small):
    data = encoded(small, "PNG")
    chunks = png_chunks(data)
    (head,), (pixels,), (end,) = ([c for c in chunks if c[0] == kind] for kind in (b"IHDR", b"IDAT", b"IEND"))
    half = len(pixels[1]) // 2
    yield "no_end.png", png([head, pixels])
    yield "no_checksum_at_the_end.png", png([head, pixels])[:-4]
    yield "wrong_checksum.png", png([head, (*pixels, 12345), end])
    yield "wrong_checksums_of_parts.png", png([
        head, (b"IDAT", pixels[1][:half], 1), (b"IDAT", b"", 2), (b"IDAT", pixels[1][half:], 3), end])
    yield "chunk_before_header.png", png([(b"tEXt", b"Title\0a drawing"), head, pixels, end])
    yield "end_missing_and_chunk_after.png", png([head, pixels, (b"tEXt", b"Title\0a drawing")])


def riff(*chunks):
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for k, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def vp8x(flags, width, height):
    sizes = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"VP8X", bytes([flags, 0, 0, 0]) + sizes


def webp_kinds(small):
    for name, data in (("lossy", encoded(small, "WEBP", quality=80)), ("lossless", encoded(small, "WEBP", lossless=True))):
        image = (data[12:16], data[20:20 + struct.unpack("<I", data[16:20])[0]])
        for flag, what in ((0x08, "exif"), (0x04, "xmp"), (0x10, "alpha"), (0x20, "icc"), (0x3C, "all")):
            yield f"{name}_flag_{what}.webp", riff(vp8x(flag, *small.size), image)
        frame = (b"\x02\0\0\x03\0\0" + vp8x(0, *small.size)[1][4:] + b"\0\0\0\0" + image[0]
                 + struct.pack("<I", len(image[1])) + image[1] + b"\0" * (len(image[1]) % 2))
        canvas = (small.width + 11, small.height + 13)
        yield f"{name}_first_frame_offset.webp", riff(vp8x(2, *canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))


def container_kinds(small):
    for kinds in (gif_kinds, bmp_kinds, png_kinds, webp_kinds):
        yield from kinds(small)


def tiff(orientation, kind="H", big=False, also=b""):
    """An EXIF block: one directory with an orientation of a type."""
    order = ">" if big else "<"
    number = {"B": 1, "H": 3, "I": 4, "rational": 5, "b": 6, "i": 9, "f": 11, "d": 12}[kind]
    start = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8)
    if kind == "rational":
        value, outside = struct.pack(order + "I", 26), struct.pack(order + "II", 2 * orientation, 2)
    elif kind == "d":
        value, outside = struct.pack(order + "I", 26), struct.pack(order + "d", orientation)
    else:
        value, outside = struct.pack(order + kind, orientation), b""
    entry = struct.pack(order + "HHI", 0x0112, number, 1) + value + b"\0" * (4 - len(value))
    return start + struct.pack(order + "H", 1) + entry + struct.pack(order + "I", 0) + outside + also


def xmp(orientation, element=False):
    if element:
        return f"<x:xmpmeta><tiff:Orientation>{orientation}</tiff:Orientation></x:xmpmeta>".encode()
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def raw_profile(exif):
    digits = (b"Exif\0\0" + exif).hex()
    lines = "\n".join(digits[at:at + 72] for at in range(0, len(digits), 72))
    return f"\nexif\n{len(exif) + 6:8}\n{lines}\n".encode()


def orientation_kinds(small):
    file = jpeg(ycc(small), LAYOUTS["422"])

    def with_segments(*contents):
        return file[:2] + b"".join(segment(0xE1, content) for content in contents) + file[2:]

    def exif_segment(*arguments, **options):
        return b"Exif\0\0" + tiff(*arguments, **options)

    packet = b"http://ns.adobe.com/xap/1.0/\0"
    for kind in ("B", "H", "I", "rational", "b", "i", "f", "d"):
        yield f"type_{kind}.jpg", with_segments(exif_segment(6, kind))
        yield f"type_{kind}_big.jpg", with_segments(exif_segment(8, kind, True))
    for value in range(10):
        yield f"value_{value}.jpg", with_segments(exif_segment(value))
    for thin in ((1, 5), (5, 1), (1, 1)):
        for value in range(2, 9):
            data = jpeg(ycc(small.resize(thin)), LAYOUTS["444"], tables=False, markers=[segment(0xE1, exif_segment(value))])
            yield f"{thin[0]}x{thin[1]}_value_{value}.jpg", data
    yield "xmp_only.jpg", with_segments(packet + xmp(6))
    yield "xmp_element.jpg", with_segments(packet + xmp(8, True))
    yield "xmp_two.jpg", with_segments(packet + xmp(6), packet + xmp(3))
    yield "xmp_and_exif.jpg", with_segments(packet + xmp(8), exif_segment(6))
    yield "exif_says_nothing_xmp_does.jpg", with_segments(exif_segment(9), packet + xmp(6))
    yield "exif_two_segments.jpg", with_segments(exif_segment(6), exif_segment(8))
    yield "exif_prefixed_twice.jpg", with_segments(b"Exif\0\0" + exif_segment(6))
    yield "exif_after_jfif.jpg", file[:2] + JFIF + segment(0xE1, exif_segment(7)) + file[2:]

    head, pixels, end = png_chunks(encoded(small, "PNG"))
    text, folded = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
    extra = {
        "exif": (b"eXIf", tiff(6)), "exif_big_long": (b"eXIf", tiff(8, "I", True)), "exif_prefixed": (b"eXIf", exif_segment(5)),
        "raw_profile": (b"tEXt", text + raw_profile(tiff(6))),
        "raw_profile_compressed": (b"zTXt", text + b"\0" + zlib.compress(raw_profile(tiff(8)))),
        "xmp": (b"iTXt", folded + b"\0\0\0\0" + xmp(6)),
        "xmp_compressed": (b"iTXt", folded + b"\1\0\0\0" + zlib.compress(xmp(7, True))),
    }
    for name, parts in extra.items():
        yield f"{name}.png", png([head, parts, pixels, end])
        yield f"{name}_late.png", png([head, pixels, parts, end])
    yield "exif_late_no_end.png", png([head, pixels, (b"eXIf", tiff(6))])
    yield "exif_wrong_checksum_of_pixels.png", png([head, (b"eXIf", tiff(6)), (*pixels, 99), end])

    data = encoded(small, "WEBP", lossless=True)
    image = (data[12:16], data[20:20 + struct.unpack("<I", data[16:20])[0]])
    exif, meta = (b"EXIF", tiff(6)), (b"XMP ", xmp(8))
    yield "exif.webp", riff(vp8x(0x08, *small.size), image, exif)
    yield "exif_prefixed.webp", riff(vp8x(0x08, *small.size), image, (b"EXIF", exif_segment(8, "I")))
    yield "exif_before_image.webp", riff(vp8x(0x08, *small.size), exif, image)
    yield "exif_without_flag.webp", riff(vp8x(0, *small.size), image, exif)
    yield "xmp.webp", riff(vp8x(0x04, *small.size), image, meta)
    yield "xmp_and_exif.webp", riff(vp8x(0x0C, *small.size), image, exif, meta)
