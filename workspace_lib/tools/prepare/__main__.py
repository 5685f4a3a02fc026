"""`python -m workspace_lib.tools.prepare imagenet ARCHIVES DEST`, `... coco DEST`; what the scripts call."""
import sys

from .cli import main

if __name__ == '__main__':
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr] # a name that the terminal cannot show
    sys.exit(main())
