"""``make doctor``: will the lab start on this machine, and if not, why not and what mends it.

Standard library only, Python 3.8 or newer (Ubuntu 20.04's), so that it runs before anything is installed.
Exit status: 0 the lane works, 2 a wrong command line, 1 or that of the symptom (10 to 44) otherwise.
"""
from __future__ import annotations

from .base_image import choose_base_image
from .checks import choose_lane, diagnose
from .cli import main
from .facts import Facts
from .findings import Finding
from .fixes import apply_fixes
from .host import Host
from .symptoms import SYMPTOMS, recognise

__all__ = ['SYMPTOMS', 'Facts', 'Finding', 'Host', 'apply_fixes', 'choose_base_image', 'choose_lane', 'diagnose',
           'main', 'recognise']
