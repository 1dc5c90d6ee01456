"""JointDiff Bench: joint diffusion models, diffusion classifiers and semi-supervised rivals under one protocol."""
