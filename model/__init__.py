"""What is computed: shapes, tasks, networks, the sampling mathematics and its backends.

Importing this package imports no torch; the modules that need it import it themselves.
"""

from model.library_logging import filter_notices

filter_notices()
