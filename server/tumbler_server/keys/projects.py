"""How many keys each project has: a row for each, counted on in the transaction that makes a key.

To count a million keys on each Create would take a second. Writers go one at a time, so that the count is exact.
"""

from tumbler_server import limits
from tumbler_server.errors import LimitReached
from tumbler_server.store.database import Transaction
from tumbler_server.store.models import ProjectRow


def count_one_more(transaction: Transaction, project_id: str, most: int) -> None:
    """Count a key that is about to be made. Raises ``LimitReached`` where the project has ``most`` already."""
    counted = (
        ProjectRow.insert(project_id=project_id, keys=1)
        .on_conflict(conflict_target=[ProjectRow.project_id], update={ProjectRow.keys: ProjectRow.keys + 1})
        .returning(ProjectRow.keys)
    )
    (row,) = transaction.select(counted)
    if row.keys > most:
        raise LimitReached(limits.PROJECT_KEYS.what, most)
