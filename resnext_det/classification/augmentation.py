"""From an opened image to the uint8 crop a classifier sees (paper Sec. 4; fb.resnet.torch's recipe).

Crops stay uint8 until they are on the device; :class:`Normalize` holds the statistics, once, and applies them there,
with the color changes that were drawn for each image.
Random choices are drawn from torch's and numpy's global generators, which the data set seeds for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop, v2

# Principal components of the RGB values of ImageNet's pixels, in [0, 1] (Krizhevsky et al. 2012; fb.resnet.torch).
LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)
LIGHTING_EIGENVECTORS = (  # one column for each eigenvalue
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in the gray value (ITU-R 601)
ASPECT_RATIOS = [3 / 4, 4 / 3]
ASPECTS = ("log", "uniform")  # how the ratio of a crop's sides is drawn: torchvision's and fb.resnet.torch's way
ATTEMPTS = 10  # at a crop that fits the image
INTERPOLATIONS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
POLICIES: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
}
"""torchvision's, with its own settings."""


@dataclass(frozen=True)
class Sample:
    """An image that has been opened but not decoded, its class and its file."""

    image: Image.Image
    label: int
    path: str = ""


def to_tensor(image: Image.Image) -> Tensor:
    """PIL image -> uint8 RGB (3, H, W); a view of (H, W, 3) memory, which resizing reads fastest."""
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)


def draw_colors(jitter: float, lighting: float) -> Tensor:
    """The random numbers behind one image's change of colors; :func:`color_map` makes the map of them.

    Args:
        jitter: brightness, contrast and saturation change by up to this share, in random order; below 1.
        lighting: standard deviation of the weight of each principal color.

    Returns:
        (3, 3), rows: the order of 0 brightness, 1 contrast, 2 saturation; their factors in that order; the weights.
    """
    factors = 1 + jitter * (2 * torch.rand(3) - 1)
    return torch.stack([torch.randperm(3).float(), factors, lighting * torch.randn(3)])


SAME_COLORS = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
"""What :func:`draw_colors` returns where nothing changes."""


def color_map(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Color jitter and PCA lighting as one linear map for each image.

    Brightness scales pixels, saturation mixes them with their own gray, contrast with the mean gray of the image:
    each is linear in the pixel x and the image's mean color m, and so is their sequence. Nothing is clipped, as in
    fb.resnet.torch, which jitters floats.

    Args:
        draws: (N, 3, 3) of :func:`draw_colors`.

    Returns:
        A (N, 3, 3), B (N, 3, 3), shift (N, 3, 1): the new pixel, RGB in [0, 1], is A x + B m + shift.
    """
    kinds, factors, weights = draws[:, :, :, None].unbind(1)  # each (N, 3, 1)
    a = torch.eye(3).to(draws).expand(len(draws), 3, 3)
    b = torch.zeros_like(a)
    gray = torch.tensor(GRAY_WEIGHTS).to(draws).expand(3, 3)  # every channel becomes the gray value
    for step in range(3):
        factor, kind = factors[:, step, None], kinds[:, step, None]
        # Mixed with black, with the mean gray, with the pixel's gray
        a_mixed = (kind == 2) * (gray @ a)
        b_mixed = (kind == 1) * (gray @ (a + b)) + (kind == 2) * (gray @ b)
        a, b = factor * a + (1 - factor) * a_mixed, factor * b + (1 - factor) * b_mixed
    principal = torch.tensor(LIGHTING_EIGENVECTORS).to(draws) * torch.tensor(LIGHTING_EIGENVALUES).to(draws)
    return a, b, principal @ weights


def uniform_aspect_crop(width: int, height: int, area: Sequence[float]) -> tuple[int, int, int, int]:
    """A crop with fb.resnet.torch's odds: the ratio of the sides uniform in 3/4 to 4/3, then the sides swapped or not.

    Where none of ten fits, the central square.

    Args:
        width, height: of the image in pixels.
        area: smallest and largest share of it.

    Returns:
        top, left, height, width.
    """
    for _ in range(ATTEMPTS):
        share, ratio = (torch.empty(1).uniform_(*bounds).item() for bounds in (area, ASPECT_RATIOS))
        sides = [round(math.sqrt(share * width * height * r)) for r in (ratio, 1 / ratio)]
        w, h = sides if torch.rand(()) < 0.5 else reversed(sides)
        if 0 < w <= width and 0 < h <= height:
            return int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ())), h, w
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side


class ImageNetTraining:
    """Random crop by area and aspect ratio, resize, flip; and the draws of color jitter and PCA lighting.

    The crop stays uint8; :class:`Normalize` changes its colors on the device.

    Args:
        crop_size: side of the result in pixels.
        area: smallest and largest share of the image's area; aspect ratios are 3/4 to 4/3.
        flip: probability of a horizontal flip.
        jitter, lighting: of :func:`draw_colors`.
        aspect: one of :data:`ASPECTS`.
        interpolation: of the resizing, "bilinear" or "bicubic", as Pillow does it.
        policy: one of :data:`POLICIES`, behind the flip.
        erasing: probability that a rectangle gets ``fill``, last.
        fill: RGB, 0 to 255.

    Returns (when called with a :class:`Sample`): uint8 (3, crop_size, crop_size), label, :func:`draw_colors` (3, 3).
    """

    def __init__(
        self,
        crop_size: int,
        area: tuple[float, float],
        flip: float,
        jitter: float,
        lighting: float,
        *,
        aspect: str = "log",
        interpolation: str = "bilinear",
        policy: str = "none",
        erasing: float = 0.0,
        fill: Sequence[float] = (0, 0, 0),
    ) -> None:
        self.crop_size, self.area, self.flip, self.jitter, self.lighting = crop_size, list(area), flip, jitter, lighting
        self.aspect, self.interpolation = aspect, interpolation
        self.last = POLICIES[policy]()
        if erasing:
            self.last = nn.Sequential(self.last, v2.RandomErasing(erasing, value=[round(value) for value in fill]))

    def __call__(self, sample: Sample) -> tuple[Tensor, int, Tensor]:
        image, size = sample.image, self.crop_size
        full_width, full_height = image.size
        if self.aspect == "uniform":
            top, left, height, width = uniform_aspect_crop(full_width, full_height, self.area)
        else:
            top, left, height, width = RandomResizedCrop.get_params(image, self.area, ASPECT_RATIOS)
        # A JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; never below the size of the crop.
        image.draft("RGB", (full_width * size // width + 1, full_height * size // height + 1))
        x, y = image.width / full_width, image.height / full_height
        box = (round(left * x), round(top * y), round((left + width) * x), round((top + height) * y))
        # torch resizes uint8 as Pillow does (to one unit) in half the time.
        crop = F.interpolate(to_tensor(image.crop(box))[None], (size, size), mode=self.interpolation, antialias=True)[0]
        if torch.rand(()) < self.flip:
            crop = crop.flip(-1)
        return self.last(crop).contiguous(), sample.label, draw_colors(self.jitter, self.lighting)


class CifarTraining:
    """Padding by 4 with ``fill`` (RGB, 0 to 255), a random crop of the original size, flip (Sec. 5.3).

    Returns as :class:`ImageNetTraining`.
    """

    def __init__(self, crop_size: int, flip: float, padding: int = 4, fill: Sequence[float] = (0, 0, 0)) -> None:
        crop = v2.RandomCrop(crop_size, padding=padding, fill=list(fill))
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(flip)])

    def __call__(self, sample: Sample) -> tuple[Tensor, int, Tensor]:
        return self.transform(to_tensor(sample.image)).contiguous(), sample.label, SAME_COLORS


class CenterCrop:
    """Short side to ``short_side``, then the central square (Sec. 4, evaluation); 0 for ``crop_size`` keeps it whole.

    Decodes in full, so that figures compare with other people's. Returns uint8 (3, H, W), label.
    """

    def __init__(self, short_side: int, crop_size: int, interpolation: str = "bilinear") -> None:
        self.resize = v2.Resize(short_side, INTERPOLATIONS[interpolation], antialias=True)
        self.crop = v2.CenterCrop(crop_size) if crop_size else None

    def __call__(self, sample: Sample) -> tuple[Tensor, int]:
        image = self.resize(sample.image.convert("RGB"))
        return to_tensor(image if self.crop is None else self.crop(image)), sample.label


class Normalize(nn.Module):
    """uint8 (N, 3, H, W) RGB -> float: (x / 255 - mean) / std, on the device of ``x``.

    Args:
        mean, std: RGB, of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1), persistent=False)

    def forward(self, x: Tensor, colors: Tensor | None = None) -> Tensor:
        """With ``colors`` (N, 3, 3), the draws of the training transforms, x / 255 is jittered and lit first."""
        pixels = x.flatten(2).to(self.mean)  # (N, 3, H W), floating point
        if colors is None:
            flat = torch.addcmul(-self.mean / self.std, pixels, 1 / (255 * self.std))
        else:
            of_pixel, of_mean, shift = color_map(colors.to(self.mean))
            offset = of_mean @ pixels.mean(2, keepdim=True) / 255 + shift
            flat = torch.baddbmm((offset - self.mean) / self.std, of_pixel / (255 * self.std), pixels)
        return flat.view(x.shape)
