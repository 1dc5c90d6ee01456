"""What a trained model is asked for, one module each: probabilities, images, explanations. One file per call."""
