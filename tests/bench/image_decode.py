"""What getting an image ready takes: decode, scale down and write, in the image child, per megapixel.

Photos are made up: smooth shapes under fine noise, which compresses about as a camera's does.
"""

import tempfile
import time
from pathlib import Path

from PIL import Image

from edge_agent.images.decoder_process import DecoderProcess
from edge_agent.images.phi_tiling import TILE_PIXELS, TILES_MOST, grid
from tests.bench.rig import Figure, arguments, median, report

CASES = (
    ("JPEG", 2, {"quality": 85}),
    ("JPEG", 12, {"quality": 85}),
    ("JPEG", 48, {"quality": 85}),
    ("JPEG", 12, {"quality": 85, "progressive": True}),
    ("PNG", 2, {}),
    ("PNG", 12, {"compress_level": 1}),
    ("WEBP", 12, {"quality": 85, "method": 0}),
    ("TIFF", 12, {}),
    ("BMP", 12, {}),
)
PIXELS = 64_000_000


def photo(megapixels):
    """Return a made-up photo, three by two."""
    height = int((megapixels * 1e6 / 1.5) ** 0.5)
    size = height * 3 // 2, height
    small = [Image.effect_noise((60 + 9 * number, 40), 120) for number in range(3)]
    smooth = Image.merge("RGB", [band.resize(size, Image.Resampling.BICUBIC) for band in small])
    return Image.blend(smooth, Image.effect_noise(size, 30).convert("RGB"), 0.15)


def peak_bytes(decoder_process):
    """Return the most memory the child ever held."""
    lines = Path(f"/proc/{decoder_process.pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def one(file, out, *, repeat):
    """Return the times, in ms, and the memory over that of an image of one pixel."""
    speck = file.with_name("speck")
    Image.new("RGB", (1, 1)).save(speck, "PNG")
    times = []
    with DecoderProcess(pixels=PIXELS) as decoder_process:
        decoder_process.develop(speck, long_side=336, out=out)
        base = peak_bytes(decoder_process)
        for _ in range(repeat):
            begun = time.perf_counter()
            cut = grid(*decoder_process.measure(file), tiles=TILES_MOST)
            decoder_process.develop(file, long_side=max(cut.rows, cut.columns) * TILE_PIXELS, out=out)
            times.append((time.perf_counter() - begun) * 1000)
        return times, peak_bytes(decoder_process) - base


def measure(folder, *, repeat):
    """Return figures per kind and size, and of the child itself."""
    figures, file = [], folder / "image"
    photos = {size: photo(size) for size in {size for _, size, _ in CASES}}
    for kind, size, options in CASES:
        photos[size].save(file, kind, **options)
        times, memory_bytes = one(file, folder / "out", repeat=repeat)
        name = f"{kind}{' progressive' if 'progressive' in options else ''}, {size} MP"
        figures += [
            median(name, times, "ms"),
            median(f"{name}, per megapixel", [took_ms / size for took_ms in times], "ms"),
            Figure(f"{name}, memory per megapixel", memory_bytes / 1e6 / size, "MB"),
        ]
    starts = []
    for _ in range(repeat):
        with DecoderProcess(pixels=PIXELS) as decoder_process:
            begun = time.perf_counter()
            decoder_process.measure(folder / "speck")
            starts.append((time.perf_counter() - begun) * 1000)
            resident_bytes = peak_bytes(decoder_process)
    return [
        *figures,
        median("start of the child", starts, "ms"),
        Figure("the child at rest", resident_bytes / 1e6, "MB"),
    ]


def main():
    parser = arguments(__doc__, repeat=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), repeat=options.repeat)
    report("Decoding images", figures, as_json=options.json)


if __name__ == "__main__":
    main()
