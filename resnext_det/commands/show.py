"""``resnext-det show``: a grid of the images and boxes that a training sees, augmented as it sees them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from ..errors import UserError
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Write the first images of a training, or those from an iteration on, with boxes and masks on one sheet."""
    parser = argparse.ArgumentParser(description="Draw what a training sees, after augmentation.")
    parser.add_argument("--config-file", metavar="FILE", required=True, help="YAML of the training")
    parser.add_argument("--images", type=at_least(1), default=12, help="how many (%(default)s)")
    parser.add_argument("--iteration", type=at_least(0), default=0, help="from this iteration on (%(default)s)")
    parser.add_argument("--out", metavar="FILE", default="training.png", help="image to write (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(argv)
    from ..detection.config import setup
    from ..detection.config_check import check_config
    from ..detection.data.checked_sets import check_sets_from_config
    from ..detection.data.loaders import known_sets, register_sets, train_loader_from_config
    from ..detection.data.seen import drawn_sample
    from ..detection.initial_weights import apply_preset, class_names_of
    from ..files import atomic_write, shown
    from ..images import format_of_name
    from ..reporting.sheet import tiled

    cfg = setup(args.config_file, [*args.opts, "DATALOADER.NUM_WORKERS", "0"])
    check_config(cfg, eval_only=False)
    if not (kind := format_of_name(args.out)):
        raise UserError(f"--out {shown(args.out)}: give an ending that names an image format, such as .png")
    cfg = apply_preset(cfg)
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TRAIN, "TRAIN")
    sets = check_sets_from_config(cfg, training=True)
    loader = train_loader_from_config(cfg, max(cfg.SEED, 0), args.iteration, sets=sets)
    samples = itertools.islice(itertools.chain.from_iterable(loader), args.images)
    names = class_names_of(cfg, sets)
    sheet = tiled([drawn_sample(sample, names, cfg.INPUT.FORMAT) for sample in samples])
    with atomic_write(args.out, "wb") as file:
        sheet.save(file, format=kind)
    print(f"{shown(args.out)}: {args.images} images as training sees them, from iteration {args.iteration} on")
