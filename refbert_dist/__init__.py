"""RefBERT, distributed: compress a BERT-style teacher into a small student that keeps reading the teacher's states."""

from refbert_dist._auto import register_when_imported

register_when_imported()
