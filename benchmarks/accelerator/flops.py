"""How many operations an image takes, and how many a second the device can do.

A Vision Transformer of width w, L tokens (one and the patches), h heads, N blocks, patches of p
pixels and embeddings of d columns takes of each image

    patches           2 (L - 1) 3 p^2 w
    a block           24 L w^2 + 4 L^2 w       q, k, v, output: 8 L w^2; MLP: 16 L w^2; scores, mix
    the last, pooled  24 w^2 + 4 h L w         its one row; keys and values are never made
    projection        2 w d

of which the blocks but the last are nearly all. We count the last block as if no keys and values
were made for its one row, which is the least that has to be computed, so the shares of the peak are
the lower ones. Norms, softmax and activations
don't count. A ResNet's number is the catalog's: multiply-adds, times two.
"""

from benchmarks.peak import matmul_gflops
from clip_jax.config import CLIPConfig, ViTConfig


def image_flops(config: CLIPConfig, *, catalog_gflops: float = 0.0) -> float:
    """Operations of one image's embedding.

    Args:
        config: of the model.
        catalog_gflops: billions of them, for a ResNet.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig):
        return 1e9 * catalog_gflops
    w, length, h = vision.width, vision.num_patches + 1, vision.num_heads
    patches = 2 * vision.num_patches * 3 * vision.patch_size**2 * w
    block = 24 * length * w**2 + 4 * length**2 * w
    last = 24 * w**2 + 4 * h * length * w
    return float(patches + (vision.num_layers - 1) * block + last + 2 * w * config.embed_dim)


def peak_gflops(dtype: str, *, tiny: bool) -> float:
    """Billions of operations a second of a large matrix product, 8192 cubed."""
    return matmul_gflops(dtype, 256 if tiny else 8192, calls=1 if tiny else 10)
