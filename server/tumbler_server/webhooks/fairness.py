"""Sharing of a limited number of places among all projects."""


def has_room(held: int, free: int) -> bool:
    """Return whether a project that holds ``held`` places may take one of the ``free`` ones.

    It may if it holds less than a third as many as are free. One project alone then gets a quarter of all places, ten
    get a thirteenth each, and some stay free for others. A project that holds none is refused only if none is free.
    """
    return 3 * held < free
