"""The page `report.html` of a run, made from the files of its folder. It needs no other file, and no script."""

import base64
import csv
import shlex
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from training.engine.files import read_json, replacing
from training.engine.run_folder import ROOT

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ project }}: {{ run }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #222 }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
  .wide { overflow-x: auto } table { border-collapse: collapse }
  th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
  td.number { text-align: right; font-variant-numeric: tabular-nums } td { overflow-wrap: anywhere }
  img { max-width: 100%; height: auto; margin: 1rem 0 0 } pre { background: #f4f4f4; padding: .6rem; overflow-x: auto }
</style>
<h1>{{ project }}: {{ run }}</h1>
<div class="wide"><table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>Metrics</h2>
{% for rows in tables if rows %}<div class="wide"><table>
<tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.values() %}<td{% if value is number %} class="number"{% endif %}>
{{- "%.4f" % value if value is float else value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% else %}<p>There are no metrics of a test split.</p>
{% endfor %}
<h2>Settings that differ from the defaults</h2>
{% if changed %}<pre>{{ changed }}</pre>{% else %}<p>None.</p>{% endif %}
<details><summary>All settings</summary><pre>{{ settings }}</pre></details>
<h2>The same again</h2>
<pre>{{ again }}</pre>
<h2>Pictures</h2>
{% for name, content in pictures.items() %}<img src="data:image/png;base64,{{ content }}" alt="{{ name }}">
{% endfor %}
</html>
"""


def read_numbers(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, with numbers as such; none if the file is missing."""
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as text:
        return [{key: as_number(value) for key, value in row.items()} for row in csv.DictReader(text)]


def as_number(value: str) -> str | float:
    try:
        return float(value) if "." in value else int(value)
    except ValueError:
        return value


def write_page(run: Path) -> None:
    """Writes `report.html` of a run that was tested."""
    about, settings = read_json(run / "run.json"), (run / "config.yaml").read_text(encoding="utf-8")
    facts = {name: about[name] for name in ("command", "started", "ended", "seed", "python")}
    facts["git commit"] = about["git_commit"] or "none"
    packages = [f"{name} {about['packages'].get(name)}" for name in ("torch", "lightning")]
    tested = [{"metric": name, "value": value} for name, value in read_json(run / "test_metrics.json").items()]
    pictures = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in sorted(run.glob("*.png"))}
    page = Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        project=ROOT.name,
        run=run.name,
        facts=facts | {"packages": ", ".join(packages)} | {f"SHA-256 of {k}": v for k, v in about["data"].items()},
        tables=[tested, read_numbers(run / "per_class.csv")],
        changed=yaml.safe_dump(about["changed"], sort_keys=False) if about["changed"] else "",
        settings=settings,
        again=f"python training/train.py --config {shlex.quote(str(run / 'config.yaml'))}",
        pictures=pictures,
    )
    with replacing(run / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
