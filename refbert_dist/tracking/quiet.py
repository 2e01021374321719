"""A person sees our lines; of other libraries only what went wrong."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence progress bars, load reports and debug lines of other libraries in this process.

    transformers reports every weight that it initialises anew; what matters of that is checked where models are loaded.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    for name in ("httpx", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
