{% include "tests/" ~ cookiecutter._variants[cookiecutter.variant].tests %}
