"""Labeled folders as they are: COCO, YOLO, Pascal VOC, CVAT for images and LabelMe, each read into COCO's form."""

from .reading import FORMATS, forget, read, read_checked, recognize, splits_of
from .source import Source, state_of
from .writing import write

__all__ = ["FORMATS", "Source", "forget", "read", "read_checked", "recognize", "splits_of", "state_of", "write"]
