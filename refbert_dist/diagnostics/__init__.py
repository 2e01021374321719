"""What a finished run's students do with their references: information, attention, and where they gain."""
