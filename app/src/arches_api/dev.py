"""For `hypercorn --reload arches_api.dev:app` (make dev). Servers run `python -m arches_api serve`."""

import os

from .app import create_app
from .lib.logs import configure_logging
from .lib.settings import load_settings

settings = load_settings(os.environ)
configure_logging(settings.log_level)
app = create_app(settings)
