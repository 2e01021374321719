"""What a student's shape costs beside its teacher's: size, operations, memory and time, measured in one run."""
