"""``python -m tunproxy`` is ``tunproxy``."""

import sys

from tunproxy.cli.main import main

sys.exit(main())
