"""The files of a run that are pure functions of its record."""

from pathlib import Path

from hf_transfer.record import RunRecord
from hf_transfer.sharing import plots
from hf_transfer.sharing.card import render_card, render_report

DOCUMENTS = ("README.md", "record.json", "report.html", "plots/confusion_matrix.png", "plots/learning_curve.png")


def write_documents(record: RunRecord, folder: Path) -> None:
    """Write record.json, the card, the report and the plots; the card first, for it may be refused as incomplete."""
    card = str(render_card(record))
    pictures = {
        "confusion matrix": plots.as_png(plots.confusion_matrix(record)),
        "learning curve": plots.as_png(plots.learning_curve(record)),
    }
    (folder / "plots").mkdir(exist_ok=True)
    for title, png in pictures.items():
        (folder / "plots" / f"{title.replace(' ', '_')}.png").write_bytes(png)
    (folder / "report.html").write_text(render_report(record, pictures), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "record.json").write_text(record.to_json() + "\n", encoding="utf-8")
