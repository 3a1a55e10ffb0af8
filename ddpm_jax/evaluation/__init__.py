"""Evaluation as the papers do it: features of images, statistics of features, and what is computed from them."""
