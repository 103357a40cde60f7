"""Numbers and pictures for people: tables, curves, drawn detections, the report."""
