"""Sources of pictures and captions; pairs can be read in any order."""

from clip_jax.sources.columns import Columns as Columns
from clip_jax.sources.input_files import Input as Input
from clip_jax.sources.inputs import open_input as open_input
from clip_jax.sources.inputs import read_picture as read_picture
from clip_jax.sources.pairs import Pair as Pair
from clip_jax.sources.pairs import Pairs as Pairs
from clip_jax.sources.pairs import open_pairs as open_pairs
from clip_jax.sources.records import Record as Record
from clip_jax.sources.records import Rows as Rows
from clip_jax.sources.records import Shard as Shard
from clip_jax.sources.table import TablePairs as TablePairs
from clip_jax.sources.tar import TarPairs as TarPairs
from clip_jax.sources.where import Where as Where
