"""The report of a run: one HTML file, a pure function of its record and its plots."""

import base64

from hf_transfer.record import RunRecord
from hf_transfer.sharing.card import load_template, template_facts


def render_report(record: RunRecord, images: dict[str, bytes]) -> str:
    """The report as one HTML file, which holds its images (title -> PNG)."""
    encoded = {title: base64.b64encode(png).decode() for title, png in images.items()}
    template = load_template("report.html", autoescape=True)
    return template.render(**template_facts(record), images=encoded)
