"""``workspace train`` under the name that mmclassification's tools/train.py has in people's fingers."""
import sys

from workspace_lib.tools.cli import main

sys.exit(main(['train', *sys.argv[1:]]))
