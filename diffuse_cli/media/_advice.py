"""What to do with files that are pictures, or hold some, and are not read."""

from __future__ import annotations

from collections.abc import Mapping

_CONVERT = "convert them to JPEG or PNG, such as with magick mogrify -format jpg *{}"
_DEVELOP = "export them as JPEG or TIFF from a raw converter, such as darktable"
_EXPORT = "export them as PNG from the program that made them"
_FRAMES = "take frames from them, such as with ffmpeg -i NAME{} -vf fps=1 NAME-%05d.png"
_DRAW = "draw them as PNG, such as with rsvg-convert -w 512 NAME{0} -o NAME.png"
_PAGES = "draw their pages as PNG, such as with pdftoppm -png NAME{0} NAME"
_UNPACK = "unpack them"
_ALONE = "name one, or a folder of nothing else"

_KINDS = {
    _CONVERT: "heic heif hif avif jxl jp2 j2k jxr tga ico icns ppm pgm pbm pnm qoi dds exr hdr",
    _DEVELOP: "cr2 cr3 crw nef nrw arw sr2 srf dng raf orf rw2 pef srw 3fr iiq rwl x3f",
    _EXPORT: "psd psb xcf kra ai eps ps afphoto",
    _FRAMES: "mp4 m4v mov avi mkv webm mpg mpeg wmv flv mts m2ts 3gp ogv",
    _DRAW: "svg svgz",
    _PAGES: "pdf",
    _ALONE: "zip tar parquet arrow",
    _UNPACK: "gz tgz bz2 xz zst 7z rar",
}

ADVICE: Mapping[str, str] = {
    f".{name}": advice.format(f".{name}")
    for advice, names in _KINDS.items()
    for name in names.split()
}
"""By extension."""
