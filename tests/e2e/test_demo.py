import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.service import PATIENCE, plain_environment
from tumbler import keyformat

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


def test_the_demonstration_shows_a_keys_life(tmp_path: Path) -> None:
    """`make demo` shows each step with its time and no whole key, and leaves no files."""
    shown = subprocess.run(
        [sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=tmp_path,
        env=plain_environment(TMPDIR=str(tmp_path)),
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    steps = re.findall(r"^  (\S.*?) +\d+\.\d\d ms   (.+)$", shown.stdout, re.MULTILINE)
    said = [(what.rpartition(" at ")[0] or what, outcome) for what, outcome in steps]
    assert said.count(("verify the old key", "VALID")) == 2
    assert said.count(("verify the new key", "VALID")) == 4
    assert said.count(("verify the old key", "REVOKED")) == said.count(("verify the new key", "REVOKED")) == 2
    assert not re.search(keyformat.PATTERN, shown.stdout)
    assert list(tmp_path.iterdir()) == []
