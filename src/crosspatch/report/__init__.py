"""Write results as one self-contained HTML page that works offline under a strict content-security policy."""

from crosspatch.report.page import write_page as write_page
