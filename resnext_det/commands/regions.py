"""``resnext-det regions``: how much objectness a region needs, so that detections are lost in few images at most."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .arguments import detector_parser, real


def main(argv: Sequence[str] | None = None) -> None:
    """Write a copy of the weights whose configuration has MODEL.RESNEXT.MIN_OBJECTNESS."""
    parser = detector_parser("Leave out regions that need no look, at a stated risk.")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images like those to come, unlabeled"
    )
    parser.add_argument(
        "--risk", type=real(above=0, below=1), default=0.01, help="largest part of images that lose a detection"
    )
    parser.add_argument("--confidence", type=real(above=0, below=1), default=0.95, help="that it is no more")
    parser.add_argument("--output", default="output/fewer_regions.pth", metavar="FILE")
    args = parser.parse_args(argv)
    from ..detection.channels import rgb_only
    from ..detection.prediction.command import split_settings
    from ..detection.prediction.detector import config_of_arguments, load_predictor
    from ..detection.regions import allowed, calibrated
    from ..prediction.inputs import find_inputs, is_video, read_rgb
    from ..weights import ReadOnce, save_checkpoint

    args.input, args.opts = split_settings(args.input, args.opts)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    read = ReadOnce(args.trust_pickle)
    cfg = config_of_arguments(args, read)
    files = [path for path in find_inputs(args.input) if not is_video(path)]
    allowed(len(files), args.risk, args.confidence)  # too few images are known before the work
    rgb_only(cfg.INPUT.CHANNELS, "regions")
    predictor, _, _ = load_predictor(cfg, read)
    limit = cfg.DATASETS.MAX_MEGAPIXELS
    found = [predictor.regions_needed(read_rgb(path, max_megapixels=limit)) for path in files]
    needed, every = zip(*found, strict=True)
    threshold = calibrated(needed, args.risk, args.confidence)
    cfg.defrost()
    cfg.MODEL.RESNEXT.MIN_OBJECTNESS = threshold
    checkpoint = read(cfg.MODEL.WEIGHTS)
    save_checkpoint(args.output, checkpoint.tensors, {**checkpoint.metadata, "config": cfg.dump()})
    kept = sum(int((objectness >= threshold).sum()) for objectness in every) / sum(map(len, every))
    lost = sum(least < threshold for least in needed)
    print(f"MODEL.RESNEXT.MIN_OBJECTNESS {threshold:.6g}: {100 * kept:.1f}% of the regions; {lost} of {len(needed)} "
          f"images lose a detection; wrote {args.output}")  # fmt: skip
