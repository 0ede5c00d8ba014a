"""Whose keys are accepted: those of named projects, or of any, where that is said by name."""

import enum
from collections.abc import Iterable
from typing import Final

__all__ = ["ANY_PROJECT", "AnyProject", "ProjectId"]


class AnyProject(enum.Enum):
    """The type of `ANY_PROJECT`."""

    ANY_PROJECT = enum.auto()


ANY_PROJECT: Final = AnyProject.ANY_PROJECT
"""For a verifier whose own key sees the keys of all projects: accept them all, whichever tenant's they are."""

ProjectId = str | Iterable[str]
"""A project, or several, one of which a key must belong to."""

UNSAID = (
    "the verifier's own key can verify the keys of all projects: set project_id, or ANY_PROJECT, "
    "or use a key of one project"
)
"""Why a verifier does not answer that was not told whose keys to accept."""


def projects_of(project_id: ProjectId) -> tuple[str, ...]:
    """Return the projects that are named. Raises ValueError where there are none, or one has no name."""
    named = (project_id,) if isinstance(project_id, str) else tuple(project_id)
    if not named or not all(isinstance(each, str) and each for each in named):
        raise ValueError("project_id: must be one or more project ids, none of them empty")
    return named
