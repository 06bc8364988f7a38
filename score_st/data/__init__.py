"""Images: data sets, their files and preprocessing, and the batches of a step."""
