"""Image towers of transformers' folders."""

from pathlib import Path

from flax import linen as nn

from pdistill.interop.conversion import converter
from pdistill.interop.diffusers_weights import read_weights
from pdistill.interop.weights import from_torch
from pdistill.networks import ClipImage, ImageEncoder

WEIGHTS = "model.safetensors"
UNUSED = "embeddings.mask_token"  # of DINOv2's training
PICTURES = ("vision_model.", "visual_projection.")  # in folders of a whole CLIP


@converter
def image_encoder(folder: str | Path, *, module: nn.Module) -> ImageEncoder:
    """Reads the weights of an image tower of known sizes.

    Args:
      folder: path of a folder of Hugging Face's.
      module: a `Dinov2` or a `ClipImage`.

    Raises:
      ConversionError: there are no weights, or those of another network.
    """
    tensors, weights = read_weights(Path(folder), WEIGHTS)
    tensors.pop(UNUSED, None)
    if isinstance(module, ClipImage):
        tensors = {
            name.removeprefix(PICTURES[0]): a
            for name, a in tensors.items()
            if name.startswith(PICTURES) and not name.endswith("position_ids")
        }
    return from_torch(ImageEncoder(None, module), tensors, weights)
