"""Ways of judging an influence store: each reads the labelled tensor and the data's truth, nothing else."""
