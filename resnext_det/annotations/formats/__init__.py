"""Labeled folders as they are: COCO, YOLO, Pascal VOC, CVAT for images and LabelMe, each read into COCO's form."""

from .reading import FORMATS, read, read_checked, recognize, splits_of
from .source import Source
from .writing import write

__all__ = ["FORMATS", "Source", "read", "read_checked", "recognize", "splits_of", "write"]
