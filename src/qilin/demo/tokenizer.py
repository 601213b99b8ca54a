"""A small Chinese tokenizer: byte-pair merges over characters, bytes for what it has never seen."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The template's own words, one token each: spelt out they were a third of a short question's tokens.
TEMPLATE_WORDS = ("USER:", " ASSISTANT:")
LONGEST = 4  # characters of a merged token: words, not whole questions learnt by heart


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of about `vocabulary` tokens on `texts`; any string round-trips through it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Marks, signs and digits stand alone, and so do the words of sides and places: while 左 was merged into
            # 左眼 here and 左侧 there, a small model took long to learn that both say 左.
            pre_tokenizers.Split(Regex(r"</?[a-z]+>|\s|[^\w\s]|\d|[左右双上中下]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            max_token_length=LONGEST,
            min_frequency=3,
            show_progress=False,
        ),
    )
    tokenizer = plain_bytes(tokenizer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in TEMPLATE_WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its byte tokens no longer special: the trainer had to be given them as special ones, but
    then `skip_special_tokens` would drop every character that is spelt in bytes."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
