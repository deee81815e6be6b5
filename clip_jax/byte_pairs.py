"""Merges of byte pairs by rank, for pieces of text of any length.

A merge's id ascends with its rank, so the lowest id is merged first, from left to right.
"""

import bisect
import heapq
from itertools import pairwise

# An id above that of every merge.
END = 49407


def merge_long(ids: list[int], merged: dict[tuple[int, int], int]) -> list[int]:
    """Returns what merging gives, in n log n.

    A heap of (merge, place) over a doubly linked list: all places of one merge leave the heap
    together, left to right, before any pair that they create.
    """
    size = len(ids)
    after = list(range(1, size + 1))
    before = list(range(-1, size - 1))
    heap = [(merged[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merged]
    heapq.heapify(heap)
    gone = -1
    while heap:
        best, i = heapq.heappop(heap)
        j = after[i]
        if ids[i] == gone or j == size or merged.get((ids[i], ids[j])) != best:
            continue  # one of the two has already been merged
        ids[i], ids[j] = best, gone
        after[i] = j = after[j]
        if j < size:
            before[j] = i
            if (new := merged.get((best, ids[j]))) is not None:
                heapq.heappush(heap, (new, i))
        if (h := before[i]) >= 0 and (new := merged.get((ids[h], best))) is not None:
            heapq.heappush(heap, (new, h))
    return [number for number in ids if number != gone]


def merge_beginning(
    ids: list[int], merged: dict[tuple[int, int], int], lefts: dict[int, list[int]]
) -> list[int]:
    """Returns the tokens at the start of a piece that don't depend on what follows these bytes.

    Merges are done in the order of their ranks, as in the whole piece. When the last token could
    merge with the unknown next one, it is given up. All tokens before it are the same as in the
    whole piece, because merges go from left to right.
    """
    size = len(ids)
    after = list(range(1, size + 1))
    before = list(range(-1, size - 1))
    heap = [(merged[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merged]
    heapq.heapify(heap)
    gone, last, undecided = -1, size - 1, 0  # the first merge not yet decided at the end

    def give_up(merge: int) -> None:
        nonlocal last, undecided
        ids[last], last, undecided = gone, before[last], merge + 1
        if last >= 0:
            after[last] = size

    while last >= 0:
        mergeable = lefts.get(ids[last], ())
        place = bisect.bisect_left(mergeable, undecided)
        at_end = mergeable[place] if place < len(mergeable) else END
        best = heap[0][0] if heap else END
        if at_end < best:
            give_up(at_end)
            continue
        if best == END:
            break
        while heap and heap[0][0] == best:
            _, i = heapq.heappop(heap)
            j = after[i]
            if ids[i] == gone or j == size or merged.get((ids[i], ids[j])) != best:
                continue
            ids[i], ids[j] = best, gone
            after[i] = j = after[j]
            if j < size:
                before[j] = i
                if (new := merged.get((best, ids[j]))) is not None:
                    heapq.heappush(heap, (new, i))
            else:
                last = i
            if (h := before[i]) >= 0 and (new := merged.get((ids[h], best))) is not None:
                heapq.heappush(heap, (new, h))
        undecided = best + 1
        if best in lefts.get(ids[last], ()):
            give_up(best)
    return [number for number in ids[: last + 1] if number != gone]
