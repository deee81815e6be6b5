"""Faces that users of other libraries know: Flax CLIP of Hugging Face's transformers 4.

Change the import, and nothing else:

    from clip_jax.compat import FlaxCLIPTextModel  # was: from transformers import ...
"""

from clip_jax.compat.configs import CLIPConfig as CLIPConfig
from clip_jax.compat.configs import CLIPTextConfig as CLIPTextConfig
from clip_jax.compat.configs import CLIPVisionConfig as CLIPVisionConfig
from clip_jax.compat.models import FlaxCLIPModel as FlaxCLIPModel
from clip_jax.compat.models import FlaxCLIPTextModel as FlaxCLIPTextModel
from clip_jax.compat.models import (
    FlaxCLIPTextModelWithProjection as FlaxCLIPTextModelWithProjection,
)
from clip_jax.compat.models import FlaxCLIPVisionModel as FlaxCLIPVisionModel
from clip_jax.compat.models import (
    FlaxCLIPVisionModelWithProjection as FlaxCLIPVisionModelWithProjection,
)
from clip_jax.compat.modules import FlaxCLIPVisionModule as FlaxCLIPVisionModule
