"""Where pictures and their captions are read from; every source is read at random."""

from clip_jax.sources.pairs import Pair as Pair
from clip_jax.sources.pairs import Pairs as Pairs
from clip_jax.sources.pairs import open_pairs as open_pairs
from clip_jax.sources.table import TablePairs as TablePairs
from clip_jax.sources.tar import TarPairs as TarPairs
