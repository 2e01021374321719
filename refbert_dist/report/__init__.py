"""Reports: what a run has left, as one page with plots that opens anywhere, offline."""
