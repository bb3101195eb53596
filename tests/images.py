"""Images to send: good ones of every kind, and a collection of bad ones."""

import io
import struct
import zlib

from PIL import Image, ImageDraw


def picture(width=64, height=48, mode="RGB"):
    """A picture whose left half is red and whose right half is blue, a white mark in the upper left corner."""
    image = Image.new("RGB", (width, height), "red")
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), fill="blue")
    draw.rectangle((0, 0, width // 8, height // 8), fill="white")
    return image if mode == "RGB" else image.convert(mode)


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(megapixels, seed=1):
    """A picture that compresses as badly as a photo at best quality."""
    side = int((megapixels * 1e6) ** 0.5)
    return Image.effect_noise((side, side), 90 + seed).convert("RGB")


def turned(orientation, kind="JPEG"):
    """`picture`, stored so that it is upright once it is turned as EXIF says."""
    back = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }
    image = picture()
    for step in back[orientation]:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def png(width, height, *, chunks=(), rows=b"", depth=8, colour=2):
    """A PNG written by hand, so that it can lie."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *(chunk(name, body) for name, body in chunks),
            chunk(b"IDAT", rows),
            chunk(b"IEND", b""),
        ]
    )


def jpeg_of_scans(count):
    """A JPEG of 62 megapixels whose last scan, of 92 bytes, comes so many times: each is 30 ms of computing."""
    whole = encoded(Image.new("L", (7900, 7900), 128), "JPEG", progressive=True)
    end = whole.rindex(b"\xff\xd9")
    begin = whole.rindex(b"\xff\xda", 0, end)
    return whole[:begin] + whole[begin:end] * count + whole[end:]


WEBP_64_MP = bytes.fromhex(
    "5249464626000000574542505650384c190000002f355fcd17075081540820000a1a02495bbced8f8f88e87f0000"
)
"""7990 x 7990 pixels of one colour."""


def good():
    """One image of every kind that is taken, by name."""
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    grey16 = Image.linear_gradient("L").convert("I").point(lambda level: level * 257).convert("I;16")
    return {
        "jpeg": encoded(picture(), "JPEG"),
        "jpeg-progressive": encoded(picture(), "JPEG", progressive=True),
        "jpeg-cmyk": encoded(picture(mode="CMYK"), "JPEG"),
        "jpeg-grey": encoded(picture(mode="L"), "JPEG"),
        **{f"jpeg-turned-{number}": turned(number) for number in range(1, 9)},
        "png": encoded(picture()),
        "png-turned": turned(6, "PNG"),
        "png-alpha": encoded(rgba),
        "png-grey-alpha": encoded(rgba.convert("LA")),
        "png-palette": encoded(palette),
        "png-palette-alpha": encoded(palette, transparency=bytes(range(0, 256, 1))[: len(palette.getcolors())]),
        "png-16": encoded(grey16),
        "png-bits": encoded(picture(mode="1")),
        "png-colour-key": encoded(picture(), transparency=(255, 0, 0)),
        "webp": encoded(picture(), "WEBP"),
        "webp-alpha": encoded(rgba, "WEBP"),
        "bmp": encoded(picture(), "BMP"),
        "tiff": encoded(picture(), "TIFF"),
        "tiff-lzw": encoded(picture(), "TIFF", compression="tiff_lzw"),
        "tiff-cmyk": encoded(picture(mode="CMYK"), "TIFF"),
        "tiff-16": encoded(grey16, "TIFF"),
        "gif": encoded(palette, "GIF"),
        "gif-frames": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "one-pixel": encoded(Image.new("RGB", (1, 1))),
    }


def bad():
    """Files that are no image we take, by name."""
    jpeg, whole = encoded(picture(400, 300), "JPEG"), encoded(picture(400, 300))
    bomb = zlib.compress(bytes(3 * 8000 * 8000), 9)
    huge = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0
    )
    return {
        "text": b"this is no image at all, but long enough",
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "heic": struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(400),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n" + bytes(100),
        "ppm": b"P6 2 2 255\n" + bytes(12),
        "zip-then-png": b"PK\x03\x04" + bytes(26) + whole,
        "jpeg-head": jpeg[:20],
        "jpeg-half": jpeg[: len(jpeg) // 2],
        "png-head": whole[:30],
        "png-half": whole[: len(whole) // 2],
        "png-flipped": whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:],
        "png-30000": png(30_000, 30_000, rows=zlib.compress(bytes(90_001))),
        "png-zip-bomb": png(2**31 - 1, 2**31 - 1, rows=bomb[:1000]),
        "png-text-bomb": png(8, 8, chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))], rows=b""),
        "png-no-size": png(0, 10),
        "png-strip": encoded(Image.new("L", (6000, 2))),
        "bmp-30000": huge,
        "gif-head": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(3),
        "webp-head": b"RIFF\x24\x00\x00\x00WEBPVP8 \x18\x00\x00\x00" + bytes(24),
        "tiff-circle": b"II*\0" + struct.pack("<I", 8) + struct.pack("<HI", 0, 8),
        "webp-64-mp": WEBP_64_MP,
        "tiff-fractions": encoded(Image.new("F", (20, 20), 0.5), "TIFF"),
    }


def odd():
    """Files that are strange but show something; an answer is right, and so is a refusal."""
    exif = Image.Exif()
    exif[0x0112] = 77
    garbage = b"\xff\xe1\x00\x12Exif\0\0no such file"[:20]
    frames = [Image.new("P", (300, 300), number) for number in range(100)]
    jpeg = encoded(picture(), "JPEG")
    loop = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 3000, 0x0112, 3, 1, 6) + struct.pack("<I", 8) * 2000
    app1 = b"\xff\xe1" + struct.pack(">H", len(loop) + 2) + loop
    return {
        "exif-unknown-turn": encoded(picture(), "JPEG", exif=exif),
        "exif-garbage": jpeg[:2] + garbage + jpeg[2:],
        "exif-loop": jpeg[:2] + app1 + jpeg[2:],
        "gif-100-frames": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "jpeg-then-html": jpeg + b"<script>alert(1)</script>" * 100,
        "gif-or-script": encoded(picture().convert("P"), "GIF") + b"/*<script>*/",
        "png-then-zip": encoded(picture()) + b"PK\x05\x06" + bytes(18),
        "png-64-mp": encoded(Image.new("L", (8000, 8000), 200)),
        "jpeg-49-mp": encoded(Image.new("RGB", (7000, 7000), "green"), "JPEG"),
    }


def cut():
    """Pictures of 10 kB and more, cut off at every kB: to be refused, or shown as far as they go."""
    found = {}
    for kind, side in (("JPEG", 150), ("PNG", 60), ("WEBP", 200)):
        whole = encoded(noise(0.09).resize((side, side)), kind)
        found |= {f"{kind.lower()}-cut-at-{end}": whole[:end] for end in range(1000, len(whole), 1000)}
    return found
