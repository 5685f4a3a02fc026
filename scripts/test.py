"""``workspace test`` under the name that mmclassification's tools/test.py has in people's fingers."""
import sys

from workspace_lib.tools.cli import main

sys.exit(main(['test', *sys.argv[1:]]))
