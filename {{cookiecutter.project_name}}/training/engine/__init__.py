"""Code that the commands share. They pass the project's classes in; nothing of `data` or `models` is imported."""
