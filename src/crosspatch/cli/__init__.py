"""The command line: each verb parses, calls the floors below, and prints."""


def main() -> None:
    """Run the command line; exit 0 when all went well, 2 for bad input, 3 for a failed check, 130 when interrupted."""
    from crosspatch.cli.app import run

    run()
