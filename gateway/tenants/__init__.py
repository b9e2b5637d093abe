"""Who calls, what they may use, and what they have used."""
