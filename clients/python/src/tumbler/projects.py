"""The projects whose keys a verifier accepts: named ones, or all with `ANY_PROJECT`."""

import enum
from collections.abc import Iterable
from typing import Final

__all__ = ["ANY_PROJECT", "AnyProject", "ProjectId"]


class AnyProject(enum.Enum):
    """The type of `ANY_PROJECT`."""

    ANY_PROJECT = enum.auto()


ANY_PROJECT: Final = AnyProject.ANY_PROJECT
"""Accept the keys of all projects, of every tenant. For a verifier whose own key sees all projects."""

ProjectId = str | Iterable[str]
"""A project, or several: a key must belong to one of them."""

PROJECT_REQUIRED = (
    "the verifier's own key can verify the keys of all projects: set project_id, or ANY_PROJECT, "
    "or use a key of one project"
)
"""The error of a verifier that sees all projects and does not know whose keys to accept."""


def projects_of(project_id: ProjectId) -> tuple[str, ...]:
    """Return the named projects. Raises ValueError if there are none, or one has an empty name."""
    named = (project_id,) if isinstance(project_id, str) else tuple(project_id)
    if not named or not all(isinstance(each, str) and each for each in named):
        raise ValueError("project_id: must be one or more project ids, none of them empty")
    return named
