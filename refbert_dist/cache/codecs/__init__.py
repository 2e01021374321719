"""The codecs themselves; :mod:`refbert_dist.cache.codec` is their surface."""

PQ_ASKS = ("cache.codec is 'pq'", "cache.codec=int4")
"""What asks for faiss, and the setting that does without."""
