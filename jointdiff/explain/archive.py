"""The names of the arrays of explanations.npz, which those who write and those who score it share.

They stand apart from the metrics so that a new metric explains nothing anew.
"""

ENFORCED = "enforced:"  # before the names of arrays of images into which a finding was put
