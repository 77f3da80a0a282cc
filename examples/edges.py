"""The edges of every image in a folder, in a folder of the same layout: pairs to train on.

python examples/edges.py ./images ./edges
diffuse train ./images --given ./edges --minutes 10 -o from-edges.safetensors
diffuse sample from-edges.safetensors --given drawing.png -n 8 -o drawn/
"""

import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter, ImageOps


def edges(image: Image.Image) -> Image.Image:
    """Dark lines on white where the brightness or a color changes."""
    bands = [band.filter(ImageFilter.FIND_EDGES) for band in image.convert("RGB").split()]
    strongest = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    inside = ImageOps.crop(strongest, 1)  # the filter leaves the border as it was
    return ImageOps.expand(ImageOps.invert(inside), 1, 255)


def main(source: Path, target: Path) -> None:
    """Write the edges of each image under its name."""
    for path in sorted(
        p for p in source.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")
    ):
        out = (target / path.relative_to(source)).with_suffix(".png")
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            opaque = Image.new("RGBA", image.size, "white")
            opaque.alpha_composite(image.convert("RGBA"))
            edges(opaque).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
