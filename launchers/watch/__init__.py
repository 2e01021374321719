"""What a run that goes on elsewhere is doing: ``refbert status`` and ``refbert logs``."""
