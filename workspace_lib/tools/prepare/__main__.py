"""`python -m workspace_lib.tools.prepare imagenet ARCHIVES DEST`, `... coco DEST`; what the scripts call."""
import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
