{% include "conftest/" ~ cookiecutter._variants[cookiecutter.variant].conftest %}
