"""Print the next commands."""

# hooks/pre_gen_project.py allows only names that need no quoting.
print("cd {{ cookiecutter.project_name }}")
print("pip install -r requirements.txt")
print("python training/train.py")
