"""``python -m fastcl``."""

from fastcl.cli import main

main()
