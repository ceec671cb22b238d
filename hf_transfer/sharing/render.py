"""The files of a run that are pure functions of its record."""

from pathlib import Path

from hf_transfer.record import RunRecord
from hf_transfer.sharing import plots
from hf_transfer.sharing.card import render_card, render_report


def document_names(record: RunRecord) -> list[str]:
    """The paths of the documents of a run, below its folder."""
    return ["README.md", "record.json", "report.html", *map(_path_of, plots.pictures_of(record))]


def write_documents(record: RunRecord, folder: Path) -> None:
    """Write record.json, the card, the report and the plots; the card first, for it may be refused as incomplete."""
    card = str(render_card(record))
    pictures = {
        title: plots.as_png(draw(record)) for title, draw in plots.pictures_of(record).items()
    }
    (folder / "plots").mkdir(exist_ok=True)
    for title, png in pictures.items():
        (folder / _path_of(title)).write_bytes(png)
    (folder / "report.html").write_text(render_report(record, pictures), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "record.json").write_text(record.to_json_string() + "\n", encoding="utf-8")


def _path_of(title: str) -> str:
    return f"plots/{title.replace(' ', '_')}.png"
