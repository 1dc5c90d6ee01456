"""Where a method looks: counterfactuals, saliency, and how well they find the place."""
