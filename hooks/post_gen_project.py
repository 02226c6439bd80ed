"""Says what to type next."""

import json

NAME = json.loads(r""" {{ cookiecutter.project_name | tojson }} """)

print(f"cd {NAME}")
print("pip install -r requirements.txt")
print("python training/train.py")
