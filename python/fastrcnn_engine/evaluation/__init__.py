"""From a trained network to detections, and from detections to average precision."""
