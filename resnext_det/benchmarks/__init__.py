"""``resnext-det benchmark``: measurements on the machine at hand, each against the peer a user would otherwise take."""

BENCHMARKS = {
    "c4-inference": "c4:c4_inference",
    "c4-train": "c4:c4_train",
    "c4-memory": "c4:c4_memory",
    "classify": "classify:classify",
    "networks": "networks:networks",
    "roi-align": "roi_align:roi_align",
    "grouped-conv": "grouped_conv:grouped_conv",
    "input": "input:input_pipeline",
    "coco-evaluation": "evaluate:coco_evaluation",
    "scale": "scale:scale",
}
"""{name: module:function}. The function takes a :class:`.measure.Setting`; its module is imported when it is called."""
