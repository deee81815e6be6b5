"""What the classes share: parameters held or passed, made, cast, read and written."""

import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from clip_jax.compat.configs import PretrainedConfig, document_of
from clip_jax.compat.folders import find_folder
from clip_jax.compat.forward import Tower, checked
from clip_jax.compat.names import to_flax, to_pytorch
from clip_jax.compat.outputs import ModelOutput
from clip_jax.convert.folder_writer import write_folder
from clip_jax.nn import flatten, unflatten
from clip_jax.nn.clip import check_dtype
from clip_jax.weights.memory import on_device

Params = Mapping[str, Any]


class FlaxPreTrainedModel:
    """A model of Flax CLIP.

    A call with `params` is a pure function, also inside `jit`, `grad`, `vmap`, `pmap` and over a
    mesh. The precision of products is JAX's own setting (`jax.default_matmul_precision`).

    Attributes:
        config: the configuration, as given.
        dtype: dtype of the computation and of the results.
        seed: the seed of random parameters.
        input_shape: as given; shapes of parameters don't depend on it.
        params: the parameter tree: nested dicts by the names of transformers 4.
    """

    config_class: ClassVar[type[PretrainedConfig]]

    def __init__(
        self,
        config: Any,
        input_shape: Any = None,
        seed: int = 0,
        dtype: DTypeLike = jnp.float32,
        _do_init: bool = True,
    ):
        """Builds a model with random parameters, or with none.

        Args:
            config: of this class's kind; one of transformers does too.
            input_shape: without effect.
            seed: the seed of the parameters.
            dtype: dtype of the computation: float32, bfloat16 or float16.
            _do_init: False for a model that holds no parameters: they come with each call.

        Raises:
            CheckpointError: the configuration has values that are not possible or not supported.
            ValueError: the dtype is another one.
        """
        self.config, self.seed, self.input_shape = config, seed, input_shape
        self.dtype = check_dtype(dtype)
        self._towers = self._towers_of(document_of(config))
        self._params: Params | None = None
        if _do_init:
            self._params = self.init_weights(jax.random.key(seed), input_shape)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: DTypeLike = jnp.float32,
        *,
        config: Any = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        from_pt: bool = False,
        seed: int = 0,
        input_shape: Any = None,
        _do_init: bool = True,
    ) -> Any:
        """Loads a model.

        Args:
            pretrained_model_name_or_path: a folder, or a repository of the Hugging Face Hub. That
                of a whole model serves for its towers too.
            dtype: dtype of the computation; parameters are float32 in any case.
            config: a configuration to take instead of the folder's.
            subfolder: the folder in it, such as "text_encoder".
            revision: the branch, tag or commit of a repository.
            cache_dir: the folder of the Hub's cache.
            local_files_only: whether to take what is in the cache and ask nobody.
            from_pt: without effect: weights of PyTorch and of Flax are told apart.
            seed: as of the class.
            input_shape: as of the class.
            _do_init: False for a pair of a model without parameters, and the parameters.

        Raises:
            ValueError: there is no such folder or repository.
            CheckpointError: it can't be read, holds another kind of encoder, lacks the projection
                that the class has, or doesn't fit; lists all problems.
            DownloadError: it can't be downloaded; the message says what to do.
        """
        folder = find_folder(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        changes, tree = cls._read(folder)
        config = cls.config_class.of_folder(folder, **changes) if config is None else config
        model = cls(config, input_shape, seed, dtype, _do_init=False)
        arrays = checked(model._shapes(), to_flax(tree))
        params = on_device(unflatten({path: arrays[path] for path in model._shapes()}), adopt=False)
        if not _do_init:
            return model, params
        model._params = params
        return model

    @classmethod
    def _read(cls, folder: Any) -> tuple[dict[str, Any], Params]:
        """Returns what the arrays say of the configuration, and our tree."""
        raise NotImplementedError

    def _towers_of(self, document: Mapping[str, Any]) -> tuple[Tower, ...]:
        raise NotImplementedError

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array by path."""
        return {path: shape for tower in self._towers for path, shape in tower.shapes().items()}

    @property
    def params(self) -> Params:
        """The parameter tree that the model holds.

        Raises:
            ValueError: it holds none; or, on setting, arrays are missing or misshapen.
        """
        if self._params is None:
            raise ValueError(
                "this model was made with _do_init=False and holds no params: make them with "
                "init_weights, or take those that from_pretrained returned beside it, and pass "
                "them to each call as params=."
            )
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        if self._params is None:
            raise ValueError(
                "this model was made with _do_init=False and holds no params: pass them to each "
                "call as params=."
            )
        checked(self._shapes(), params)
        self._params = unflatten(flatten(params))

    @property
    def params_shape_tree(self) -> dict[str, Any]:
        """The tree with `jax.ShapeDtypeStruct`s for arrays; nothing is computed."""
        shapes = self._shapes().items()
        return unflatten({path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in shapes})

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """The paths of all arrays, as tuples of keys."""
        return {tuple(path.split("/")) for path in self._shapes()}

    def init_weights(self, rng: Array, input_shape: Any = None, params: Any = None) -> Any:
        """Returns random parameters, with the distributions of transformers 4.

        Works under `jax.eval_shape` and `jax.jit`.

        Args:
            rng: the key of the random numbers.
            input_shape: without effect.
            params: arrays to keep; only those that it lacks are made.
        """
        kept = flatten(params) if params is not None else {}
        arrays = {
            path: kept[path] if path in kept else self.initial(rng, path, shape)
            for path, shape in self._shapes().items()
        }
        return unflatten(arrays)

    def initial(self, rng: Array, path: str, shape: tuple[int, ...]) -> Array:
        """Returns a random array for a path of the tree."""
        if path == "logit_scale":
            value = document_of(self.config).get("logit_scale_init_value", math.log(1 / 0.07))
            return jnp.asarray(value, jnp.float32)
        ending = path.rpartition("/")[2]
        if ending in ("scale", "bias"):
            return jnp.full(shape, float(ending == "scale"), jnp.float32)
        is_wide = ending == "class_embedding" or path.split("/")[0].endswith("_projection")
        key = jax.random.fold_in(rng, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        return (0.02 if is_wide else 0.01) * jax.random.normal(key, shape, jnp.float32)

    def to_bf16(self, params: Params, mask: Any = None) -> Any:
        """Returns the tree with its floats as bfloat16; where `mask`, a tree of bools, says so."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Any:
        """Returns the tree with its floats as float16; as `to_bf16`."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Any:
        """Returns the tree with its floats as float32; as `to_bf16`."""
        return _cast(params, jnp.float32, mask)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], params: Params | None = None
    ) -> None:
        """Writes `config.json` and `model.safetensors`, which transformers 4 and 5 load.

        An earlier such folder is replaced; the write is atomic.

        Args:
            save_directory: the folder.
            params: the parameters to write instead of those held.

        Raises:
            ValueError: the parameters don't fit the configuration.
            FileExistsError: the folder holds other files.
            OSError: it can't be written; nothing is left behind.
        """
        arrays = checked(self._shapes(), self.params if params is None else params)
        named = to_pytorch(unflatten({path: arrays[path] for path in self._shapes()}))
        architecture = type(self).__name__.removeprefix("Flax")
        document = {**document_of(self.config), "architectures": [architecture]}
        dtypes = {array.dtype.name for array in named.values()}
        # Without it transformers 5 would take that of the first array for all of them.
        document["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        files = {"config.json": text.encode()}
        write_folder(save_directory, files, "model.safetensors", named, replace=True)

    def _result(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if self._option("return_dict", return_dict, True) else output.to_tuple()

    def _option(self, name: str, given: bool | None, default: bool) -> bool:
        return bool(getattr(self.config, name, default) if given is None else given)

    def _options(self, attentions: bool | None, states: bool | None) -> dict[str, bool]:
        return {
            "hidden_states": self._option("output_hidden_states", states, False),
            "attentions": self._option("output_attentions", attentions, False),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"


def _cast(params: Params, dtype: DTypeLike, mask: Any) -> Any:
    def cast(array: ArrayLike, chosen: bool = True) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        return jnp.asarray(array, dtype) if chosen and is_float else array

    return jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)
