"""The teacher cache: hidden states computed once, verified, shared by every student of every shape."""
