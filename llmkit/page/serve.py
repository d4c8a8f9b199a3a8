"""Starting the server of the page."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

from llmkit.errors import ConfigError

_MAX_UPLOAD = 20  # MB


def serve(folder: Path, faq: Path | None, host: str, port: int, *, opens_browser: bool) -> None:
    """Serve the page until the process is interrupted.

    Raises ConfigError: no such folder, Streamlit missing, an address that cannot be used; and
    DataError as `Faq.load` does.
    """
    if find_spec("streamlit") is None:
        raise ConfigError("the page needs Streamlit; install it with pip install 'llmkit[page]'")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one with checkpoints or GGUF files")
    if faq is not None:
        from llmkit.faq import Faq

        Faq.load(faq)  # a wrong file is told here, not after the first question
    _refuse_busy(host, port)
    from streamlit.web import bootstrap

    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": not opens_browser,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": _MAX_UPLOAD,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        "global.developmentMode": False,
        "logger.hideWelcomeMessage": True,
    }
    bootstrap.load_config_options(options)
    print(f"llmkit page: http://{host}:{port} (Ctrl-C stops it)", flush=True)
    arguments = [str(path.absolute()) for path in (folder, faq) if path is not None]
    bootstrap.run(str(Path(__file__).with_name("app.py")), False, arguments, options)


def _refuse_busy(host: str, port: int) -> None:
    """Raise ConfigError where the server could not listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host"
            ) from error
