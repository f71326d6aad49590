"""One step of pruning and what it needs: recipe, inputs, loss, masks, state. It may import pruning, attacks,
losses, networks, data and machine."""
