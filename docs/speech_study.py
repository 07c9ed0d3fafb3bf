"""Write the table of docs/speech-study.md from kept studies: `python docs/speech_study.py runs/study-speech-…` (one each).

The studies are made before, by `crosspatch study speech whisper-base` and `… whisper-tiny.en`.
"""

import sys
from pathlib import Path

from crosspatch.studies import load_study

PAGE = Path(__file__).with_name("speech-study.md")
BEGIN, END = "<!-- findings -->\n", "<!-- end of findings -->"


def lines(folder: Path) -> list[str]:
    """Return the findings of one study as lines of a table."""
    study = load_study(folder)
    head = [f"### {study.model}", "", "| verdict | found | measured [95 %] | the paper |", "|---|---|---|---|"]
    rows = [f"| {e.verdict} | {e.said} | {e.measured} {e.unit}; {e.count} {e.of} | {e.claim} |" for e in study.findings]
    return [*head, *rows, ""]


def main() -> None:
    """Put the tables of all folders into the page."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for folder in map(Path, sys.argv[1:]) for line in lines(folder)]
    PAGE.write_text(text.split(BEGIN)[0] + BEGIN + "\n".join(rows) + END + text.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
