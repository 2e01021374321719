"""TinyBERT's data augmentation: copies of the training rows in which words are replaced by others that fit."""
