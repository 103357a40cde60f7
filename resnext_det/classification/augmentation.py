"""From an opened picture to the uint8 crop a classifier sees (paper Sec. 4; fb.resnet.torch's recipe).

Crops stay uint8 until they are on the device; :class:`Normalize` holds the statistics, once, and applies them there.
Random choices are drawn from torch's and numpy's global generators, which the data set seeds for every sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

# Principal components of the RGB values of ImageNet's pixels, in [0, 1] (Krizhevsky et al. 2012; fb.resnet.torch).
LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)
LIGHTING_EIGENVECTORS = (  # one column for each eigenvalue
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True)
class Sample:
    """A picture that has been opened but not decoded, its class and its file."""

    image: Image.Image
    label: int
    path: str = ""


def to_tensor(image: Image.Image) -> Tensor:
    """PIL RGB picture -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def lighting_shift(std: float) -> Tensor:
    """The colour that PCA lighting adds to every pixel of one picture: (3,), RGB in [0, 1]."""
    alpha = torch.randn(3) * std
    return torch.tensor(LIGHTING_EIGENVECTORS) @ (alpha * torch.tensor(LIGHTING_EIGENVALUES))


class ImageNetTraining:
    """Random crop by area and aspect ratio, resize, colour jitter, flip, lighting.

    Args:
        crop_size: side of the result in pixels.
        area: smallest and largest share of the picture's area; aspect ratios are 3/4 to 4/3.
        flip: probability of a horizontal flip.
        color_jitter: brightness, contrast and saturation change by up to this share, in random order.
        lighting: standard deviation of PCA lighting.

    Returns (when called with a :class:`Sample`): uint8 (3, crop_size, crop_size), label, lighting shift (3,).
    """

    def __init__(
        self, crop_size: int, area: tuple[float, float], flip: float, color_jitter: float, lighting: float
    ) -> None:
        self.crop_size, self.area, self.flip, self.lighting = crop_size, tuple(area), flip, lighting
        self.jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None

    def __call__(self, sample: Sample) -> tuple[Tensor, int, Tensor]:
        image = sample.image
        full_width, full_height = image.size
        top, left, height, width = crop_box(image, self.area)
        # A JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; never below the size of the crop.
        image.draft("RGB", (full_width * self.crop_size // width + 1, full_height * self.crop_size // height + 1))
        x, y = image.width / full_width, image.height / full_height
        box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
        image = image.convert("RGB").resize((self.crop_size, self.crop_size), Image.Resampling.BILINEAR, box=box)
        if self.jitter is not None:
            image = self.jitter(image)
        if torch.rand(()) < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image), sample.label, lighting_shift(self.lighting)


def crop_box(image: Image.Image, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """torchvision's random crop: (top, left, height, width) in pixels of ``image``."""
    box = v2.RandomResizedCrop(1, scale=area, ratio=(3 / 4, 4 / 3)).make_params([image])
    return box["top"], box["left"], box["height"], box["width"]


class CifarTraining:
    """Zero padding by 4, a random crop of the original size, flip (Sec. 5.3). Returns as :class:`ImageNetTraining`."""

    def __init__(self, crop_size: int, flip: float, padding: int = 4) -> None:
        self.transform = v2.Compose([v2.RandomCrop(crop_size, padding=padding), v2.RandomHorizontalFlip(flip)])

    def __call__(self, sample: Sample) -> tuple[Tensor, int, Tensor]:
        return self.transform(to_tensor(sample.image)), sample.label, torch.zeros(3)


class CenterCrop:
    """Short side to ``short_side``, then the central square (Sec. 4, evaluation); 0 for ``crop_size`` keeps it whole.

    Decodes in full, so that figures compare with other people's. Returns uint8 (3, H, W), label.
    """

    def __init__(self, short_side: int, crop_size: int) -> None:
        self.resize = v2.Resize(short_side, antialias=True)
        self.crop = v2.CenterCrop(crop_size) if crop_size else None

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        image = self.resize(sample.image.convert("RGB"))
        return to_tensor(image if self.crop is None else self.crop(image)), sample.label


class Normalize(nn.Module):
    """uint8 (N, 3, H, W) RGB -> float: (x / 255 + shift - mean) / std, on the device of ``x``.

    Args:
        mean, std: RGB, of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        offset = -self.mean if shift is None else shift.view(-1, 3, 1, 1) - self.mean
        return (x / 255 + offset) / self.std
