"""Reference banks: the known texts that a finished model carries with it, and their states, projected once for all."""
