"""Annotations: records, readers, the check, COCO's evaluation, kinds of error. numpy only, no torch, no detectron2."""

IOU_TYPES = ("bbox", "segm", "keypoints")
"""What COCO's evaluation compares."""
LABEL_FORMATS = ("coco", "yolo", "voc")
"""Forms that labels are written in."""
