"""The names of the arrays of explanations.npz, which those who write and those who score it share.

They stand apart from the metrics so that a new metric explains nothing anew.
"""

CHANGE_MAPS = ("counterfactual", "counterfactual_control")  # in shares of the pixel range, so that a mean has a unit
ENFORCED = "enforced:"  # before the names of arrays of images into which a finding was put
FEATURES = "features:"  # before those of the judge's features of images, (n, D)
INSERTION = "insertion"  # behind "", "judge_" or "control_": (M, steps - 1), probabilities on the way to the edit
