"""Reports about runs: charts, grids of images, and the HTML page."""
