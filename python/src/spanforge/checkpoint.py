"""What of a Hugging Face checkpoint the scripts need besides its weights. Needs transformers."""

from pathlib import Path

import transformers

from .errors import DatasetError
from .spans import Span


def load_tokenizer(folder: str) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint; a folder that `training/` has written has a `tokenizer.json` and
    nothing else. Raises `DatasetError` for one that does not say which characters a token stands for."""
    file = Path(folder) / "tokenizer.json"
    if file.exists() and not file.with_name("tokenizer_config.json").exists():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise DatasetError(f"{folder}: its tokenizer has no tokenizer.json, which offsets come from")
    return tokenizer


def encode(
    tokenizer: transformers.PreTrainedTokenizerFast, text: str, add_special_tokens: bool = True
) -> tuple[list[int], list[Span]]:
    """The tokens of a text and the characters that each stands for; those that a tokenizer adds stand for
    none. Raises `DatasetError` for text that it has no tokens for."""
    try:
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add_special_tokens)
    except Exception as error:  # The tokenizers library raises nothing more specific.
        raise DatasetError(f"{text!r} cannot be cut into tokens: {error}") from None
    return encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]]


def end_tokens(model: transformers.PreTrainedModel) -> list[int]:
    """The tokens that end a response, by the model's configuration."""
    end = model.generation_config.eos_token_id
    if end is None:
        end = model.config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


class TextStream:
    """The text of generated tokens, piece by piece: what a tag protocol reads."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._text = ""

    def push(self, token: int) -> str:
        """The text that a token adds: none while a character is unfinished."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd"):
            return ""
        piece, self._text = text[len(self._text) :], text
        return piece
