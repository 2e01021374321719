"""Student, teacher, and how their layers correspond. Import the modules themselves: most of them load torch."""
