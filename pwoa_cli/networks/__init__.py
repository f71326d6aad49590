"""Networks by name and what they are made of: weights, hidden layers, norms. It may import nothing but
errors."""
