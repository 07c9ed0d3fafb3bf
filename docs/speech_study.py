"""Write the table of docs/speech-study.md from kept studies: `python docs/speech_study.py runs/study-speech-…` (one each).

The studies are made before, by `crosspatch study speech whisper-base` and `… whisper-tiny.en`.
"""

import sys
from pathlib import Path

from crosspatch.core.store import read_result
from crosspatch.studies.speech.part import Part
from crosspatch.studies.speech.whole import PARTS, told

PAGE = Path(__file__).with_name("speech-study.md")
BEGIN, END = "<!-- findings -->\n", "<!-- end of findings -->"


def lines(folder: Path) -> list[str]:
    """Return the findings of one study as lines of a table."""
    parts = {name: Part(*read_result(folder / name)) for name in PARTS if (folder / name).is_dir()}
    name = folder.name.removeprefix("study-speech-")
    found = told(name, parts, {}).findings
    head = [f"### {name}", "", "| verdict | found | measured [95 %] | the paper |", "|---|---|---|---|"]
    return [
        *head,
        *(f"| {e.verdict} | {e.said} | {e.measured} {e.unit}; {e.count} {e.of} | {e.claim} |" for e in found),
        "",
    ]


def main() -> None:
    """Put the tables of all folders into the page."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for folder in map(Path, sys.argv[1:]) for line in lines(folder)]
    PAGE.write_text(text.split(BEGIN)[0] + BEGIN + "\n".join(rows) + END + text.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
