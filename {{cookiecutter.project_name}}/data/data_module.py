{% include "data/" ~ cookiecutter._variants[cookiecutter.variant].data %}
