"""One file per family. `workspace_lib.models` imports them all, and thereby registers every backbone."""
