"""Makes tests/golden/images: small test pictures of every kind, and what Pillow and transformers make of them.

    apt-get install libjpeg-turbo-progs
    pip install -r recipes/golden/requirements.txt && python recipes/golden/images.py

decode/NAME and decode/NAME.png         an image file, and its pixels after convert("RGB")
kinds/KIND.pack                         files of image_kinds.py with their pixels after exif_transpose and convert("RGB"):
                                        name, file, width, height, RGB; 0 x 0 where Pillow refuses the file
resize/WxH_to_S.in.png and .png         an image, and the centre square of Pillow's bicubic resize, short side S
clip/WxH_to_S.in.png and .f32           an image, and the CLIP image processor's result, raw little-endian (3, S, S)

The same seed gives the same pixels. The encoded bytes may change with the versions of the codec libraries.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from transformers import CLIPImageProcessorPil

import image_kinds

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "images"
RESIZE = [  # width, height, short side: down, up, neither, tall, wide, thin, one pixel
    (97, 71, 32), (71, 97, 32), (33, 32, 32), (32, 32, 32), (20, 31, 32), (31, 20, 48), (200, 16, 32),
    (16, 200, 32), (300, 3, 32), (3, 300, 32), (1, 90, 16), (90, 1, 16), (1, 1, 16), (2, 5, 224), (160, 120, 224),
]
CLIP = [(97, 71, 32), (40, 61, 32), (25, 23, 48)]


def picture(rng, width, height):
    """Smooth colours, sharp edges and a patch of noise."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([
        255 * x / max(width - 1, 1),
        255 * y / max(height - 1, 1),
        127 + 127 * np.sin((x + 2 * y) / 5.0),
    ], axis=-1)
    rgb[(x // 7 + y // 9) % 3 == 0] = rng.integers(0, 256, 3)
    noise = (x < width // 3) & (y < height // 3)
    rgb[noise] = rng.integers(0, 256, (int(noise.sum()), 3))
    return Image.fromarray(rgb.astype(np.uint8), "RGB")


def centre_square(image, size):
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    width, height = (size, long) if width <= height else (long, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def save_png(image, path):
    image.save(path, "PNG", optimize=True)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(array, colour_type):
    """A 16-bit PNG of (H, W, samples); Pillow cannot write colour ones."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows, 9))
            + png_chunk(b"IEND", b""))


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def decode_cases(rng):
    rgb = picture(rng, 43, 29)
    smooth = rgb.resize((43, 29), Image.Resampling.BILINEAR).reduce(2).resize((43, 29), Image.Resampling.BICUBIC)
    alpha = Image.fromarray(rng.integers(0, 256, (29, 43), dtype=np.uint8), "L")
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = Image.merge("LA", (rgb.convert("L"), alpha))
    palette = rgb.quantize(17)
    other = picture(rng, 43, 29)
    deep = rng.integers(0, 65536, (29, 43, 4), dtype=np.uint16)

    yield "rgb.png", encoded(rgb, "PNG")
    yield "rgba.png", encoded(rgba, "PNG")
    yield "grey.png", encoded(rgb.convert("L"), "PNG")
    yield "grey_alpha.png", encoded(la, "PNG")
    yield "bit.png", encoded(rgb.convert("1"), "PNG")
    yield "palette.png", encoded(palette, "PNG")
    yield "palette_transparent.png", encoded(palette, "PNG", transparency=bytes(range(0, 255, 15)))
    yield "animated.png", encoded(rgb, "PNG", save_all=True, append_images=[other], duration=100)
    yield "rgb16.png", png16(deep[:, :, :3], 2)
    yield "rgba16.png", png16(deep, 6)
    yield "grey16.png", png16(deep[:, :, :1], 0)
    yield "grey_alpha16.png", png16(deep[:, :, :2], 4)

    yield "rgb.jpg", encoded(smooth, "JPEG", quality=90)
    yield "rgb_444_progressive.jpg", encoded(smooth, "JPEG", quality=90, subsampling=0, progressive=True)
    yield "grey.jpg", encoded(smooth.convert("L"), "JPEG", quality=90)
    yield "cmyk.jpg", encoded(smooth.convert("CMYK"), "JPEG", quality=95)
    yield "ycck.jpg", as_ycck(smooth)
    yield "keep_rgb.jpg", encoded(smooth, "JPEG", quality=95, keep_rgb=True)
    yield "trailer.jpg", encoded(smooth, "JPEG", quality=90) + b"something else \xff\x00 follows"

    yield "rgb.bmp", encoded(rgb, "BMP")
    yield "palette.bmp", encoded(palette, "BMP")
    yield "lossless.webp", encoded(rgb, "WEBP", lossless=True)
    yield "lossless_alpha.webp", encoded(rgba, "WEBP", lossless=True, exact=True)
    yield "lossy.webp", encoded(smooth, "WEBP", quality=90)
    yield "animated.webp", encoded(rgb, "WEBP", lossless=True, save_all=True, append_images=[other], duration=100)
    yield "still.gif", encoded(palette, "GIF")
    yield "transparent.gif", encoded(palette, "GIF", transparency=3)
    yield "animated.gif", encoded(palette, "GIF", save_all=True, append_images=[other.quantize(17)], duration=100)

    small = picture(rng, 24, 17)
    for orientation in range(1, 9):
        yield f"exif_{orientation}.jpg", encoded(small, "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    yield "exif_6.png", encoded(small, "PNG", exif=exif(6))
    yield "exif_5.webp", encoded(small, "WEBP", lossless=True, exif=exif(5))


def as_ycck(image):
    """A CMYK JPEG of YCbCr planes and K, marked as YCCK: Pillow reads it but writes plain CMYK only."""
    luma = np.asarray(image.convert("YCbCr"))
    black = np.full(luma.shape[:2] + (1,), 200, np.uint8)
    planes = Image.fromarray(255 - np.concatenate([luma, black], axis=2), "CMYK")
    data = bytearray(encoded(planes, "JPEG", quality=95))
    marker = data.index(b"Adobe")
    data[marker + 11] = 2
    return bytes(data)


def decoded(name, data):
    image = Image.open(io.BytesIO(data))
    if name == "grey16.png":  # Pillow clips these at 255; the crate keeps the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8), "L")
    return ImageOps.exif_transpose(image).convert("RGB")


def pack(path, files):
    """Files with the pixels that Pillow gives, in one file."""
    out = []
    for name, data in files:
        try:
            width, height, rgb = pixels(data)
        except (OSError, SyntaxError, ValueError):
            width, height, rgb = 0, 0, b""
        out += [struct.pack("<H", len(name)), name.encode(), struct.pack("<I", len(data)), data]
        out += [struct.pack("<HH", width, height), rgb]
    path.write_bytes(b"".join(out))


def pixels(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return *image.size, image.tobytes()


def kinds(rng):
    """The packs of image_kinds.py."""
    smooth = picture(rng, 35, 27).filter(ImageFilter.GaussianBlur(0.7))
    wide = picture(rng, 45, 35).filter(ImageFilter.GaussianBlur(1))
    small = picture(rng, 21, 14)
    return {
        "sampling": image_kinds.sampling_kinds(smooth),
        "colour": image_kinds.colour_kinds(smooth),
        "process": image_kinds.process_kinds(wide),
        "sizes": image_kinds.size_kinds(picture, rng),
        "ends": image_kinds.end_kinds(smooth),
        "damaged": image_kinds.damaged_kinds(small.resize((40, 26))),
        "containers": image_kinds.container_kinds(small),
        "orientation": image_kinds.orientation_kinds(small),
    }


def main():
    for folder in ("decode", "kinds", "resize", "clip"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    for name, files in kinds(np.random.default_rng(7)).items():
        pack(OUT / "kinds" / f"{name}.pack", files)
    rng = np.random.default_rng(20250214)
    for name, data in decode_cases(rng):
        (OUT / "decode" / name).write_bytes(data)
        save_png(decoded(name, data), OUT / "decode" / f"{name}.png")
    for width, height, size in RESIZE:
        image = picture(rng, width, height)
        stem = f"{width}x{height}_to_{size}"
        save_png(image, OUT / "resize" / f"{stem}.in.png")
        save_png(centre_square(image, size), OUT / "resize" / f"{stem}.png")
    for width, height, size in CLIP:
        image = picture(rng, width, height)
        stem = f"{width}x{height}_to_{size}"
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        values = np.asarray(processor(image, return_tensors="np")["pixel_values"][0], dtype="<f4")
        save_png(image, OUT / "clip" / f"{stem}.in.png")
        values.tofile(OUT / "clip" / f"{stem}.f32")


if __name__ == "__main__":
    main()
