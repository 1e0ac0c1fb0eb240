"""T9: fuzzing of everything that reads bytes out of a dataset."""
