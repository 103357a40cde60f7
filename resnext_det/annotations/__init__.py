"""Annotations: records, readers, the check, COCO's evaluation, kinds of error. numpy only, no torch, no detectron2."""
