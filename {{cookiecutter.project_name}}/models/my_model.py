{% include "models/" ~ cookiecutter._variants[cookiecutter.variant].model %}
