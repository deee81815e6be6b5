"""Files by a pattern, of which none is lost that can't be looked at just now."""

import errno
import fnmatch
import glob
import os
import stat

# For good, as far as it goes: other errors may be gone the next time.
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}


def matching(pattern: str) -> list[str]:
    """What `glob.glob` gives, which takes a folder that can't be read just now for an empty one.

    Raises:
        OSError: a folder can't be read, for a reason that may be gone the next time.
    """
    head, tail = os.path.split(pattern)
    folders = matching(head) if glob.has_magic(head) else [head]
    if not glob.has_magic(tail):
        found = [os.path.join(folder, tail) for folder in folders]
        return [path for path in found if os.path.lexists(path)]
    found = []
    for folder in folders:
        try:
            names = os.listdir(folder or os.curdir)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            continue
        if not tail.startswith("."):
            names = [name for name in names if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in fnmatch.filter(names, tail)]
    return found


def is_file(path: str) -> bool:
    """Whether there is a file, or a link to one; raises as above."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return False
