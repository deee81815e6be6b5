"""Files by a pattern, as `glob`, but with an error for a folder that can't be read for a moment."""

import errno
import fnmatch
import glob
import os
import stat

# Permanent errors; others may be gone at the next try.
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}


def matching(pattern: str) -> list[str]:
    """As `glob.glob`, which treats a folder that can't be read for a moment as empty.

    Raises:
        OSError: a folder can't be read, for a reason that may pass.
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
    """Whether a path is a file or a link to one; raises as `matching`."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return False
