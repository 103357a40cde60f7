"""From DATASETS keys to batches."""
