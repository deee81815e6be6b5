"""Files by their address: on local disks, or anywhere fsspec reaches (`s3://`, `gs://`, ...).

Writes are atomic: on a disk a temporary file is written, flushed and renamed; on an object store a
write is one PUT.
"""

import os

from clip_jax.errors import Exhausted as Exhausted
from clip_jax.errors import Refused as Refused
from clip_jax.errors import Unreachable as Unreachable
from clip_jax.storage.addresses import absolute as absolute
from clip_jax.storage.addresses import folder as folder
from clip_jax.storage.addresses import is_remote as is_remote
from clip_jax.storage.addresses import plain as plain
from clip_jax.storage.disk import Disk as Disk
from clip_jax.storage.disk import check_regular as check_regular
from clip_jax.storage.disk import sync_folder as sync_folder
from clip_jax.storage.pictures import MOST_OF_A_PICTURE as MOST_OF_A_PICTURE
from clip_jax.storage.pictures import check_picture_size as check_picture_size
from clip_jax.storage.protocol import Storage as Storage
from clip_jax.storage.remote import Store as Store


def storage(address: str | os.PathLike[str]) -> Storage:
    """Returns the storage that an address belongs to.

    Raises:
        ModuleNotFoundError: fsspec, or its driver for such addresses, is not installed.
        ValueError: fsspec knows no such addresses.
    """
    return Store(os.fspath(address)) if is_remote(address) else Disk()
