"""What a person looks at after a run: drawn boxes, curves, the report. No display is needed."""
