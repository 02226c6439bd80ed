"""The page `logs/index.html`, which lists all runs and sweeps."""

from typing import Any

from jinja2 import Environment

from training.engine.files import replacing
from training.engine.page import STYLE
from training.engine.run_folder import LOGS, ROOT

INDEX = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ project }}: runs</title>
{{ style | safe }}
<style>td { white-space: nowrap } td:last-child { white-space: normal; min-width: 20rem }</style>
<h1>{{ project }}: runs, the newest first</h1>
<div class="wide"><table>
<tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for name, value in row.items() %}
{%- if name == "run" and links[value] %}<td><a href="{{ links[value] }}">{{ value }}</a></td>
{%- elif value is float %}<td class="number">{{ "%.4f" % value }}</td>
{%- else %}<td>{{ value }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}</table></div>
</html>
"""


def write_index(rows: list[dict[str, Any]]) -> None:
    """Write the page, with links to `report.html` of runs and to `results.csv` of sweeps.

    Args:
        rows: Rows with the same keys; "run" is the folder of a run or sweep in logs/.
    """
    links = {}
    for row in rows:
        pages = [f"{row['run']}/{name}" for name in ("report.html", "results.csv")]
        links[row["run"]] = next((page for page in pages if (LOGS / page).exists()), None)
    page = Environment(autoescape=True).from_string(INDEX)
    text = page.render(project=ROOT.name, style=STYLE, rows=rows, links=links)
    with replacing(LOGS / "index.html") as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"page: {LOGS / 'index.html'}")
