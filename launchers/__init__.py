"""The front door: the ``refbert`` command line, and how stages are started."""
