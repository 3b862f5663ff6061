"""`python -m turbo_vaed.cli`."""

import sys

from turbo_vaed.cli import main

sys.exit(main())
