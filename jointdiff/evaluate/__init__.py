"""Numbers about predictions and images: score rows, with intervals."""
