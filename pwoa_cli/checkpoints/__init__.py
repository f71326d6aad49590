"""Other people's files to a loaded model: read, named, built, filled, normalised, settled on labelled images.
It may import networks, data, files, machine, attacks, and evaluation's statistics."""
