"""`python -m dnnkit`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before anything that an older Python cannot read
    print("dnnkit needs Python 3.11 or later; this is %d.%d (%s)." % (*sys.version_info[:2], sys.executable), file=sys.stderr)  # noqa: UP031
    print("  in a checkout: make run PYTHON=python3.11, which makes .venv; then .venv/bin/python -m dnnkit", file=sys.stderr)
    sys.exit(3)

from dnnkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
