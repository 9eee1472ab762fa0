"""What executes and records: stages, estimators, kernels, training, runs, laws. Imports nothing of ours."""
