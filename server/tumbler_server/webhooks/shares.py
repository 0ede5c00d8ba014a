"""How places that all projects need are shared out among them."""


def has_room(held: int, free: int) -> bool:
    """Say whether a project that holds so many places may take one of those that are free.

    It may while it holds less than a third of them. One project then gets a quarter of all places, ten get a thirteenth
    each, and some stay free for projects that hold none; they are refused only where no place is free at all.
    """
    return 3 * held < free
