"""Numbers and images for people: tables, curves, drawn detections, the report."""
