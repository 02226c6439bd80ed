{% include "predict/" ~ cookiecutter._variants[cookiecutter.variant].predict %}
