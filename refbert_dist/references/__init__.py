"""References: the nearest known texts of every sample, guarded against leaks, and the bank that ships them."""
