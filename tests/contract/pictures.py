"""Drawings of what the demo model knows, as files of decoded images."""

import hashlib
from itertools import count

from PIL import Image as Pillow
from PIL import ImageDraw

from edge_agent.engine.messages import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220), "black": (20, 20, 20)}
SQUARE, LANDSCAPE, PORTRAIT = (300, 300), (400, 300), (270, 480)


def drawing(colour, shape, size=SQUARE):
    """Return one shape in the middle of a white picture."""
    picture = Pillow.new("RGB", size, "white")
    pen, side = ImageDraw.Draw(picture), 0.6 * min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    if shape == "circle":
        pen.ellipse([left, top, left + side, top + side], fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle([left, top, left + side, top + side], fill=COLOURS[colour])
    else:
        corners = [(left + side / 2, top), (left, top + side), (left + side, top + side)]
        pen.polygon(corners, fill=COLOURS[colour])
    return picture


class Gallery:
    """A folder of decoded images."""

    def __init__(self, folder):
        self._folder = folder
        self._numbers = count(1)

    def hang(self, picture, *, tiles=4):
        """Write a picture as the image child does; return what the engine is told of it."""
        pixels = picture.tobytes()
        path = self._folder / f"{next(self._numbers)}.rgb"
        path.write_bytes(pixels)
        return Image(str(path), hashlib.sha256(pixels).hexdigest(), *picture.size, tiles)

    def draw(self, colour, shape="circle", size=SQUARE, *, tiles=4):
        """Hang a drawing."""
        return self.hang(drawing(colour, shape, size), tiles=tiles)

    def open(self, image):
        """Return the picture of an image."""
        with open(image.path, "rb") as file:  # noqa: PTH123
            return Pillow.frombytes("RGB", (image.width, image.height), file.read())
