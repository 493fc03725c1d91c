"""Data made ready for training, and checked: data sets, own pictures, annotations, the sample set."""
