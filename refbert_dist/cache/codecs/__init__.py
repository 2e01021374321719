"""The codecs themselves; :mod:`refbert_dist.cache.codec` is their surface."""
