"""Writes docs/glossary.md from the words that the dashboard explains: `python docs/make_glossary.py`."""

from pathlib import Path

from htc_probe.dashboards.parts.glossary import TERMS

PAGE = Path(__file__).with_name("glossary.md")


def page() -> str:
    """In Markdown."""
    lines = [f"- **{term}**: {meaning}" for term, meaning in TERMS.items()]
    head = "# Glossary\n\nThe dashboard shows the same text under *Glossary* in its sidebar."
    return f"{head}\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
