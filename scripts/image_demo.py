"""``workspace infer`` under the name that mmclassification's demo/image_demo.py has in people's fingers."""
import sys

from workspace_lib.tools.cli import main

sys.exit(main(['infer', *sys.argv[1:]]))
