"""The model that a stage starts from.

In: a recipe. Out: a LoadedModel in fp32 on the host, with the recipe's chat template; nothing is frozen or cast yet.
"""

import torch

from qilin.convert.cache import ensure_hf_layout
from qilin.model.hub import check_not_quantized
from qilin.model.llava import LoadedModel, check_feature_layer, compose, load_model, set_template
from qilin.train.config import TrainConfig


def load_start(config: TrainConfig) -> LoadedModel:
    """The model a stage starts from: composed of two parts, or an earlier stage's with this stage's template.

    Deterministic, also in what it initializes (the projector, the embedding row of `<image>`).
    """
    torch.manual_seed(config.seed)
    if config.model is None:
        assert config.vision, "checked by TrainConfig"
        assert config.language, "checked by TrainConfig"
        loaded = compose(
            config.vision,
            config.language,
            template=config.template,
            system=config.system_prompt,
            pad_square=config.pad_square,
            hub=config.hub,
        )
    else:
        loaded = load_model(ensure_hf_layout(config.model, config.hub), device="cpu", dtype="fp32", hub=config.hub)
        set_template(loaded.model, loaded.processor, config.template, config.system_prompt)
        loaded.processor.image_processor.do_pad = config.pad_square
        check_not_quantized(config.model, loaded.model.config)
    if config.feature_layer is not None:
        loaded.model.config.vision_feature_layer = config.feature_layer
    check_feature_layer(loaded.model.config)
    return loaded
