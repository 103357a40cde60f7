"""Training images per second and core: decoding alone, torchvision's reference pipeline, and ours.

All read the same JPEGs from memory, as large as ImageNet's are on average (500x375, about 110 kB), in one thread. Both
pipelines crop, flip and jitter alike; ours adds PCA lighting. On a GPU machine our workers end at uint8 and the GPU
does the colors and the normalization; the last line counts those too, on the same core.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from ..classification.augmentation import ImageNetTraining, Normalize, Sample
from ..engine.sampler import seed_everything

if TYPE_CHECKING:  # which imports this module
    from .measure import Setting

WIDTH, HEIGHT, QUALITY = 500, 375, 94
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, AREA, FLIP, JITTER, LIGHTING = 224, (0.08, 1.0), 0.5, 0.4, 0.1  # the paper's recipe, as in classification/config


def made_jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Smooth colors under noise: they compress as photographs do."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + generator.normal(0, 10, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def input_pipeline(setting: Setting) -> dict[str, dict[str, float]]:
    """Benchmark ``input``: what one core of the CPU delivers, whatever the device."""
    from .measure import result, timed

    setting = replace(setting, device="cpu")
    files = made_jpegs(4 if setting.quick else 64)
    ours = ImageNetTraining(CROP, AREA, FLIP, JITTER, LIGHTING)
    normalize = Normalize(MEAN, STD)
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP, AREA),
            transforms.ColorJitter(JITTER, JITTER, JITTER),
            transforms.RandomHorizontalFlip(FLIP),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def decode() -> None:
        for file in files:
            Image.open(io.BytesIO(file)).load()

    def theirs() -> torch.Tensor:
        return torch.stack([reference(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])

    def uint8() -> tuple[torch.Tensor, torch.Tensor]:
        made = []
        for i, file in enumerate(files):
            seed_everything((0, i, 0), devices=False)  # as in training
            made.append(ours(Sample(Image.open(io.BytesIO(file)), 0)))
        return torch.stack([sample[0] for sample in made]), torch.stack([sample[2] for sample in made])

    sides: dict[str, Callable[[], object]] = {
        "torchvision": theirs,
        "decoding alone": decode,
        "ours to uint8": uint8,
        "ours with colors and normalization": lambda: normalize(*uint8()),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = timed(sides, setting, turns=15)
    finally:
        torch.set_num_threads(threads)
    return result(
        seconds,
        "torchvision",
        {"crops differ at most by, of 255": _largest_difference(files[0])},
        images_per_second_and_core={name: len(files) / value for name, value in seconds.items()},
        bytes_per_image={"mean": sum(map(len, files)) / len(files)},
    )


def _largest_difference(file: bytes) -> float:
    """The same crop by both, without changes of color."""
    crops = []
    for crop in (
        lambda image: ImageNetTraining(CROP, AREA, 0, 0, 0)(Sample(image, 0))[0],
        lambda image: transforms.PILToTensor()(transforms.RandomResizedCrop(CROP, AREA)(image.convert("RGB"))),
    ):
        torch.manual_seed(0)
        crops.append(crop(Image.open(io.BytesIO(file))).int())
    return float((crops[0] - crops[1]).abs().max())
