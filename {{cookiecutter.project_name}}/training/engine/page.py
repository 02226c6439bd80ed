"""The page `report.html` of a run, made from the files of its folder. It is self-contained and has no scripts."""

import base64
import csv
import shlex
from io import StringIO
from pathlib import Path

import yaml
from jinja2 import Environment

from training.engine.files import read_json, replacing
from training.engine.run_folder import ROOT

STYLE = """<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #222 }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
  .wide { overflow-x: auto } table { border-collapse: collapse }
  th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
  td.number { text-align: right; font-variant-numeric: tabular-nums } .facts td { overflow-wrap: anywhere }
  img { max-width: 100%; height: auto; margin: 1rem 0 0 } pre { background: #f4f4f4; padding: .6rem; overflow-x: auto }
</style>"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ project }}: {{ run }}</title>
{{ style | safe }}
<h1>{{ project }}: {{ run }}</h1>
<div class="wide"><table class="facts">
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>Test metrics</h2>
{% if metrics %}<div class="wide"><table>
{% for name, value in metrics.items() %}<tr><td>{{ name }}</td><td class="number">{{ "%.4f" % value }}</td></tr>
{% endfor %}</table></div>
{% else %}<p>The run has no test metrics.</p>
{% endif %}
{% if classes %}<h2>Test metrics of each class</h2>
<div class="wide"><table>
<tr>{% for name in classes[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in classes %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}
<h2>Settings that differ from the defaults</h2>
{% if changed %}<pre>{{ changed }}</pre>{% else %}<p>None.</p>{% endif %}
<details><summary>All settings</summary><pre>{{ settings }}</pre></details>
<h2>Repeat this run</h2>
<pre>{{ again }}</pre>
<h2>Pictures</h2>
{% for name, content in pictures.items() %}<img src="data:image/png;base64,{{ content }}" alt="{{ name }}">
{% endfor %}
</html>
"""


def write_page(run: Path) -> None:
    """Write `report.html` of a run that was tested."""
    about, settings = read_json(run / "run.json"), (run / "config.yaml").read_text(encoding="utf-8")
    facts = {name: about[name] for name in ("command", "started", "ended", "seed", "python")}
    facts["git commit"] = about["git_commit"] or "none"
    packages = [f"{name} {about['packages'].get(name)}" for name in ("torch", "lightning")]
    pictures = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in sorted(run.glob("*.png"))}
    table = run / "per_class.csv"
    page = Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        style=STYLE,
        project=ROOT.name,
        run=run.name,
        facts=facts | {"packages": ", ".join(packages)} | {f"SHA-256 of {k}": v for k, v in about["data"].items()},
        metrics=read_json(run / "test_metrics.json"),
        classes=list(csv.DictReader(StringIO(table.read_text(encoding="utf-8")))) if table.exists() else [],
        changed=yaml.safe_dump(about["changed"], sort_keys=False) if about["changed"] else "",
        settings=settings,
        again=f"python training/train.py --config {shlex.quote(str(run / 'config.yaml'))}",
        pictures=pictures,
    )
    with replacing(run / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
