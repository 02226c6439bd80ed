"""What the commands share. It is given the project's classes and imports nothing of `data` or `models`."""
