"""Key counts by project. Each project has a row with a counter, updated in the transaction that creates a key.

Counting a million keys on each Create would take a second. Writers go one at a time, so the counter is exact.
"""

from tumbler_server import limits
from tumbler_server.errors import LimitReached
from tumbler_server.store.database import Transaction
from tumbler_server.store.models import ProjectRow


def count_one_more(transaction: Transaction, project_id: str, most: int) -> None:
    """Count a key that is about to be created. Raises ``LimitReached`` if the project already has ``most`` keys."""
    counted = (
        ProjectRow.insert(project_id=project_id, keys=1)
        .on_conflict(conflict_target=[ProjectRow.project_id], update={ProjectRow.keys: ProjectRow.keys + 1})
        .returning(ProjectRow.keys)
    )
    (row,) = transaction.select(counted)
    if row.keys > most:
        raise LimitReached(limits.PROJECT_KEYS.what, most)
