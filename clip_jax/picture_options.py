"""`PictureOptions`: what of the preprocessing a job may choose."""

import dataclasses
from typing import Any

from clip_jax.preprocess import Decode, Fit, Preprocess


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """What of the preprocessing a job may choose; the rest is the model's.

    Attributes:
        fit: as for `Preprocess`.
        background: as for `Preprocess`.
        scale_16_bit: as for `Preprocess`.
        decode: as for `Preprocess`.

    Raises:
        ValueError: there is no such fit, colour or way of decoding.
    """

    fit: Fit | None = None
    background: str | None = None
    scale_16_bit: bool = False
    decode: Decode = "exact"

    def __post_init__(self) -> None:
        Preprocess(1, **dataclasses.asdict(self))  # raises what is wrong

    @classmethod
    def of(cls, pictures: "PictureOptions | None") -> "PictureOptions":
        """Returns the options that an argument `pictures=` says; None says none.

        Raises:
            TypeError: it is something else.
        """
        if pictures is None:
            return cls()
        if not isinstance(pictures, cls):
            raise TypeError(
                "pictures= must be a clip_jax.embed.PictureOptions, such as "
                f"PictureOptions(fit='pad'). Got {type(pictures).__name__}"
            )
        return pictures

    def applied_to(self, preprocess: Preprocess) -> Preprocess:
        """Returns a model's preprocessing with these options."""
        return dataclasses.replace(preprocess, **self.chosen())

    def chosen(self) -> dict[str, Any]:
        """Returns the options that differ from their defaults, by name."""
        values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return {field.name: value for field, value in values if value != field.default}
