"""How robust a model is: attacks on the same samples, the figures with their intervals, what makes them
doubtful. It may import attacks, data, files and machine."""
