"""Drive the toy from a process of its own: `python drive.py FOLDER EXECUTOR WORKERS`; a test kills it."""

import sys
from pathlib import Path


def main(folder: Path, executor: str, workers: int) -> None:
    """Run what is left of the toy in a folder."""
    from crosspatch.core.journal import Journal
    from crosspatch.core.progress import SilentProgress
    from crosspatch.executors import Crew, Setup, execute
    from executors.toy import FINGERPRINT, open_toy

    setup = Setup("executors.toy:open_toy", folder)
    with Journal.open(folder, FINGERPRINT) as journal:
        crew = Crew(executor, workers or None)
        execute(open_toy(folder, None), journal, setup, crew=crew, progress=SilentProgress())
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
