"""Says what to type next."""

# The name is one that hooks/pre_gen_project.py lets pass, so that it needs no quoting.
print("cd {{ cookiecutter.project_name }}")
print("pip install -r requirements.txt")
print("python training/train.py")
