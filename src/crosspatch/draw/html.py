"""Tables as plain HTML, every text escaped."""

from collections.abc import Sequence
from html import escape


def table_html(headers: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Write a table without script or style; cells are text."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
