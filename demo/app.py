"""What a hosted page runs; on your own machine `acs demo` serves the same."""

import os

from acs_lib.demo import serve

serve(os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
