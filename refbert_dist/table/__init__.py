"""Tables: one experiment over tasks and seeds, and what can be said of the differences between its systems."""
