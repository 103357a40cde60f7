"""Files that only look like images, and headers without an end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resnext_det.classification.data import open_image
from resnext_det.errors import UserError
from resnext_det.images import read_header, read_image

READERS = [read_header, read_image, lambda path: open_image(str(path), str(path))]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO"])
def test_a_format_that_is_not_in_the_list_is_no_image(kind, read, tmp_path):
    """Whatever its name says: Pillow starts Ghostscript for an EPS."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.bin", kind)
    (tmp_path / "a.bin").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: (cannot be decoded \()?not an image"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("start", [b"P6\n#", b"P6\n8 8\n#", b"P5 8 8 255#", b"P4\n8 #", b"P6\n" + b"#\n" * 40_000])
def test_a_header_without_an_end_is_not_waited_for(start, read, tmp_path):
    (tmp_path / "a.ppm").write_bytes(start + b"x" * 70_000)
    with pytest.raises(UserError, match=r"a\.ppm: .*a header of more than 65536 bytes"):
        read(tmp_path / "a.ppm")


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_pixels_that_look_like_comments_and_blanks_are_pixels(mode, tmp_path):
    for value in b"#\n \0":
        buffer = io.BytesIO()
        Image.frombytes(mode, (1024, 1024), bytes([value]) * (1024 * 1024 * 3)).save(buffer, "PPM")
        (tmp_path / "a.ppm").write_bytes(buffer.getvalue())
        with Image.open(tmp_path / "a.ppm") as image:
            np.testing.assert_array_equal(read_image(tmp_path / "a.ppm", "RGB"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("read", READERS)
def test_the_limit_on_pixels_is_the_same_everywhere(read, tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 20000 10000 255\n")
    with pytest.raises(UserError, match="200.0 megapixels, more than the limit"):
        read(tmp_path / "a.pgm")
