"""In which order tests are begun."""


def minutes(item):
    """How long a test takes, where its mark ``begins_first`` says it."""
    marker = item.get_closest_marker("begins_first")
    return marker.kwargs.get("minutes", 0) if marker else 0


def at_the_heads(long, rest, workers):
    """Items so ordered that each worker begins with its share of the long ones.

    At first each worker has as many of the items as the others, one behind the other
    (pytest-xdist, ``--dist worksteal``).
    """
    found, left = [], list(rest)
    count, waiting = len(long) + len(rest), list(long)
    for worker in range(workers):
        size = (count - len(found)) // (workers - worker)
        share = -(-len(waiting) // (workers - worker))
        mine = waiting[:: workers - worker][: min(size, share)]
        waiting = [item for item in waiting if item not in mine]
        found += mine + left[: size - len(mine)]
        left = left[size - len(mine) :]
    return found + waiting + left
