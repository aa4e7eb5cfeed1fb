"""Pruning as a user asks for it: what matters least (`criteria`), how much goes (`amounts`), and `repair`."""
