"""A run that is stopped or killed resumes where it was."""
