"""Prepare data for training, and check it: published data sets, own pictures, annotations, the sample set."""
