"""A small byte-fallback BPE tokenizer for Chinese medical text: any string round-trips through it."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# One token each for the template's own words: spelled out, they were a third of a short question's tokens.
TEMPLATE_TOKENS = ("USER:", " ASSISTANT:")
MAX_TOKEN_LENGTH = 4  # characters: words, not whole memorized questions


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of about `vocab_size` tokens on `texts`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    # Punctuation, digits and the characters of sides and positions are tokens of their own: while 左 was merged into
    # 左眼 in one place and 左侧 in another, a small model took long to learn that both contain 左.
    isolated = Regex(r"</?[a-z]+>|\s|[^\w\s]|\d|[左右双上中下]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(isolated, "isolated")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))],
            max_token_length=MAX_TOKEN_LENGTH,
            min_frequency=3,
            show_progress=False,
        ),
    )
    tokenizer = make_byte_tokens_ordinary(tokenizer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TEMPLATE_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_byte_tokens_ordinary(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer only accepts byte tokens as special ones, but then `skip_special_tokens` would drop every character
    that is encoded as bytes."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
