"""Pictures -> what a model sees of them, one vector a picture: pictures that look alike to it lie near each other.

In: a loaded model and RGB pictures. Out: unit vectors, the mean of the tokens that the language model is given.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qilin.model.compose import Loaded


@torch.inference_mode()
def image_features(loaded: Loaded, pictures: Sequence[Image.Image]) -> NDArray[np.float16]:
    """(N, D) of N pictures, through encoder and projector in one batch; half precision, as there may be many."""
    pixels = loaded.processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    seen = loaded.model.get_image_features(pixel_values=pixels.to(loaded.model.device, loaded.model.dtype))
    means = torch.stack([tokens.float().mean(dim=0) for tokens in seen.pooler_output])  # (N, D)
    return (means / means.norm(dim=1, keepdim=True).clamp_min(1e-12)).half().cpu().numpy()
