"""From images to detections: preprocessing, results and everything that can detect."""
