"""Pretraining classifiers: data, augmentation, training and evaluation by the paper's recipes (Sec. 4 and 5)."""
