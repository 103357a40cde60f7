"""Crops, lighting, normalization and errors against few-line references."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation

from resnext_det import create_model
from resnext_det.classification.augmentation import (
    LIGHTING_EIGENVALUES,
    LIGHTING_EIGENVECTORS,
    SAME_COLORS,
    CenterCrop,
    CifarTraining,
    ImageNetTraining,
    Normalize,
    Sample,
    draw_colors,
    to_tensor,
    uniform_aspect_crop,
)
from resnext_det.classification.evaluate import evaluate, hits, restrict


def noise(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8))


def test_random_crop_equals_torchvision() -> None:
    image = noise()
    torch.manual_seed(3)
    ours, label, colors = ImageNetTraining(32, (0.3, 0.6), 0.0, 0.0, 0.0)(Sample(image, 5))
    torch.manual_seed(3)
    theirs = to_tensor(v2.RandomResizedCrop(32, (0.3, 0.6), antialias=True)(image))
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert label == 5 and torch.equal(colors[1:], SAME_COLORS[1:])


def test_bicubic_crop_is_pillows() -> None:
    image = noise()
    torch.manual_seed(3)
    ours = ImageNetTraining(32, (0.3, 0.6), 0.0, 0.0, 0.0, interpolation="bicubic")(Sample(image, 5))[0]
    torch.manual_seed(3)
    crop = v2.RandomResizedCrop(32, (0.3, 0.6), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    torch.manual_seed(3)
    bilinear = ImageNetTraining(32, (0.3, 0.6), 0.0, 0.0, 0.0)(Sample(image, 5))[0].float()
    torch.manual_seed(3)
    theirs = to_tensor(crop(image)).float()
    assert (ours.float() - theirs).abs().mean() < 0.5 < 5 < (bilinear - theirs).abs().mean()  # overshoots are clipped
    resized, _ = CenterCrop(35, 0, "bicubic")(Sample(image, 5))
    assert torch.equal(resized, to_tensor(image.resize((45, 35), Image.Resampling.BICUBIC)))


def test_uniform_aspect_has_the_authors_odds() -> None:
    """Uniform in 3/4 to 4/3 or the inverse of it: mean (25/24 + ln(16/9) / (7/12)) / 2; log-uniform has 1.0138."""
    crops = [uniform_aspect_crop(4000, 4000, (0.08, 0.5)) for _ in range(4000)]
    ratios = np.array([width / height for _, _, height, width in crops])
    shares = np.array([width * height / 4000**2 for _, _, height, width in crops])
    assert 0.7495 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.334
    uniform = 0.5 * 25 / 24 + 0.5 * np.log(16 / 9) / (7 / 12)
    assert ratios.mean() == pytest.approx(uniform, abs=4 * ratios.std() / 4000**0.5)
    # Below 1 the density is half (of the uniform draw) and half 1/x^2 of it (of the swapped one).
    below = 0.5 * (1 - 3 / 4) / (7 / 12) + 0.5 * (4 / 3 - 1) / (7 / 12)
    assert (ratios < 1).mean() == pytest.approx(below, abs=0.03)
    assert shares.mean() == pytest.approx(0.29, abs=0.01)
    for top, left, height, width in crops:
        assert 0 <= top <= 4000 - height and 0 <= left <= 4000 - width


def test_an_image_too_long_for_any_crop_gives_its_central_square() -> None:
    assert uniform_aspect_crop(1000, 10, (0.9, 1.0)) == (0, 495, 10, 10)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "autoaugment"])
def test_policies_and_erasing_are_torchvisions(policy: str) -> None:
    """torchvision's reference: crop, flip, policy; erasing last, here before normalization, with what that makes 0."""
    image = noise(64, 64)
    theirs = {
        "randaugment": v2.RandAugment(),
        "trivialaugment": v2.TrivialAugmentWide(),
        "autoaugment": v2.AutoAugment(),
    }[policy]
    torch.manual_seed(5)
    ours = ImageNetTraining(64, (1.0, 1.0), 1.0, 0.0, 0.0, policy=policy, erasing=1.0, fill=(7, 8, 9))
    crop = ours(Sample(image, 0))[0]
    torch.manual_seed(5)
    flipped = ImageNetTraining(64, (1.0, 1.0), 1.0, 0.0, 0.0)(Sample(image, 0))[0]
    torch.manual_seed(5)
    RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    torch.rand(())  # the flip's
    expected = v2.RandomErasing(1.0, value=[7, 8, 9])(theirs(flipped))
    assert torch.equal(crop, expected) and not torch.equal(crop, flipped)


def test_padding_with_the_mean_color_is_zero_after_normalization() -> None:
    mean = (125.3, 123.0, 113.9)
    crops = [CifarTraining(32, 0.0, fill=[round(v) for v in mean])(Sample(noise(32, 32), 0))[0] for _ in range(9)]
    normalize = Normalize(tuple(v / 255 for v in mean), (0.25,) * 3)
    corners = torch.stack([normalize(crop[None])[0][:, [0, 0, -1, -1], [0, -1, 0, -1]] for crop in crops])
    padded = corners[(corners.abs() < 0.5 / 255 / 0.25).all(1, keepdim=True).expand_as(corners)]
    assert len(padded) >= 3 * 9, "a crop that is moved has a corner in the padding"


def test_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    file = io.BytesIO()
    noise(9, 6).resize((900, 600), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    crops = []
    for draft in (True, False):
        torch.manual_seed(4)
        image = Image.open(file)
        if not draft:
            image = image.convert("RGB")
            image.draft = lambda *size: None
        crops.append(ImageNetTraining(64, (0.5, 0.9), 1.0, 0.0, 0.0)(Sample(image, 0))[0].float())
        assert (image.width < 900) == draft
    assert (crops[0] - crops[1]).abs().mean() < 3


@pytest.mark.parametrize(("area", "width"), [(0.01, 900), (0.07, 450), (0.3, 225), (1.0, 113)])
def test_a_jpeg_is_never_decoded_below_the_size_of_its_crop(area: float, width: int) -> None:
    file = io.BytesIO()
    noise(900, 900).save(file, "JPEG")
    image = Image.open(file)
    ImageNetTraining(64, (area, area), 0.0, 0.0, 0.0)(Sample(image, 0))
    assert image.width == width


def test_training_images_are_mirrored_left_to_right() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 200  # its left half is bright
    for transform in (ImageNetTraining(32, (1.0, 1.0), 1.0, 0.0, 0.0), CifarTraining(32, 1.0, padding=0)):
        crop = transform(Sample(Image.fromarray(pixels), 0))[0]
        assert crop[:, :, 20:].min() == 200 and crop[:, :, :12].max() == 0


def test_colors_equal_their_steps_one_by_one() -> None:
    """Against torchvision's brightness, contrast and saturation, on colors that none of them clips, for all orders."""
    images = torch.randint(90, 130, (20, 3, 8, 9), dtype=torch.uint8)
    draws = torch.stack([draw_colors(0.4, 0.1) for _ in images])
    assert len({tuple(draw[0].tolist()) for draw in draws}) == 6
    ours = Normalize((0.0,) * 3, (1.0,) * 3)(images, draws)
    for image, (kinds, factors, weights), changed in zip(images, draws, ours, strict=True):
        expected = image / 255
        for kind, factor in zip(kinds.tolist(), factors.tolist(), strict=True):
            expected = (adjust_brightness, adjust_contrast, adjust_saturation)[int(kind)](expected, factor)
        lighting = sum(
            weights[i] * LIGHTING_EIGENVALUES[i] * torch.tensor(LIGHTING_EIGENVECTORS)[:, i] for i in range(3)
        )
        expected = expected + lighting[:, None, None]
        torch.testing.assert_close(changed, expected, rtol=0, atol=3e-4)  # torchvision's gray weights have four digits


def test_draws_have_the_recipes_ranges() -> None:
    draws = torch.stack([draw_colors(0.4, 0.1) for _ in range(2000)])
    assert 0.6 <= draws[:, 1].min() < 0.61 and 1.39 < draws[:, 1].max() <= 1.4
    assert draws[:, 2].std().item() == pytest.approx(0.1, rel=0.05) and abs(draws[:, 2].mean().item()) < 0.01
    assert torch.equal(draw_colors(0.0, 0.0)[1:], SAME_COLORS[1:])


def test_normalisation() -> None:
    image = to_tensor(noise())
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalize = Normalize(mean, std)
    for ours in (normalize(image[None])[0], normalize(image[None], SAME_COLORS[None])[0]):
        for c in range(3):
            torch.testing.assert_close(ours[c], (image[c] / 255 - mean[c]) / std[c])


def test_cifar_crop_is_a_window_of_the_padded_image() -> None:
    image = noise(32, 32)
    crop = CifarTraining(32, flip=0.0)(Sample(image, 0))[0]
    padded = torch.nn.functional.pad(to_tensor(image), (4, 4, 4, 4))
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    assert sum(torch.equal(crop, window) for window in windows) == 1
    crops = {CifarTraining(32, flip=0.0)(Sample(image, 0))[0].numpy().tobytes() for _ in range(30)}
    assert len(crops) > 10, "the window moves"


def test_centre_crop_and_whole_image() -> None:
    image = noise(512, 256)
    crop, _ = CenterCrop(256, 224)(Sample(image, 0))
    assert torch.equal(crop, to_tensor(image)[:, 16:240, 144:368])
    assert CenterCrop(64, 0)(Sample(image, 0))[0].shape == (3, 64, 128)


def test_errors_and_competing_classes() -> None:
    scores = torch.tensor([[5.0, 4, 3, 2, 1, 0, 9]] * 3)
    assert hits(scores, torch.tensor([6, 4, 5])).tolist() == [3, 1, 1]  # best five: 6, 0, 1, 2, 3
    assert restrict(scores, [4, 5]).argmax(1).tolist() == [4, 4, 4]


def test_several_sizes_average_their_softmax() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    images = [torch.randint(0, 256, (40, 3, s, s + 1), dtype=torch.uint8) for s in (6, 9)]
    normalize, model = Normalize((0.5,) * 3, (0.01,) * 3), Mean()
    views = [torch.softmax(model(normalize(i)), 1) for i in images]
    labels = sum(views).argmax(1)
    assert all((view.argmax(1) != labels).any() for view in views), "one size alone would pass"
    labels[:10] = sum(views)[:10].argmin(1)
    results = evaluate(model, normalize, [[(i, labels)] for i in images], flip=True)
    assert results == {"top1_error": 25.0, "top5_error": 0.0}


def test_a_whole_image_is_tested_densely() -> None:
    """The classifier on any size is the mean of fc's scores at every place of the last map."""
    model = create_model("resnext14_2x2d", 5, res2_out_channels=16).eval()
    image, _ = CenterCrop(70, 0)(Sample(noise(100, 80), 0))
    x = Normalize((0.5,) * 3, (0.2,) * 3)(image[None])
    assert x.shape == (1, 3, 70, 87)
    features = x
    for part in (model.stem, model.res2, model.res3, model.res4, model.res5):
        features = part(features)
    scores = F.conv2d(features, model.fc.weight[:, :, None, None], model.fc.bias)
    assert scores.shape == (1, 5, 3, 3)
    torch.testing.assert_close(model(x), scores.mean((2, 3)))


def test_flipped_views_count() -> None:
    """A network that looks at the left edge only, and sees both edges when mirrored views are averaged."""
    images = torch.zeros(1, 3, 2, 8, dtype=torch.uint8)
    images[0, 1, :, -1] = 255

    class LeftEdge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, 0]

    loaders = [[(images, torch.tensor([1]))]]
    same = Normalize((0.0,) * 3, (0.1,) * 3)
    model = LeftEdge()
    assert evaluate(model, same, loaders)["top1_error"] == 100.0
    assert model.training, "as it was"
    assert evaluate(LeftEdge(), same, loaders, flip=True)["top1_error"] == 0.0
