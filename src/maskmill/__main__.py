"""`python -m maskmill`: the command line of jobs/cli.py."""

import sys

from maskmill.jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
