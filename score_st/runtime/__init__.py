"""How a program runs: command line, workdir, several processes, devices, progress. Nothing here knows diffusion."""
