"""Text in, token shards out: corpora, labelled tasks, tokenisation and the order in which samples are read."""
