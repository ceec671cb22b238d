"""The files of a run that are pure functions of its record."""

from pathlib import Path

from hf_transfer.record import RunRecord
from hf_transfer.sharing.card import render_card
from hf_transfer.sharing.plots import as_png, plots_of
from hf_transfer.sharing.report import render_report


def document_names(record: RunRecord) -> list[str]:
    """Paths of the documents of a run, below its folder."""
    return ["README.md", "record.json", "report.html", *map(_plot_path, plots_of(record))]


def write_documents(record: RunRecord, folder: Path) -> None:
    """Write record.json, card, report and plots.

    The card is rendered first: it may be refused as incomplete, and then nothing is written.
    """
    card = str(render_card(record))
    images = {title: as_png(draw(record)) for title, draw in plots_of(record).items()}
    (folder / "plots").mkdir(exist_ok=True)
    for title, png in images.items():
        (folder / _plot_path(title)).write_bytes(png)
    (folder / "report.html").write_text(render_report(record, images), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "record.json").write_text(record.to_json_string() + "\n", encoding="utf-8")


def _plot_path(title: str) -> str:
    return f"plots/{title.replace(' ', '_')}.png"
