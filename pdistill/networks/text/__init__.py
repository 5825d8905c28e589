"""Text encoders, and `TextEncoder`, which is one with its parameters and its tokenizer."""

from pdistill.networks.text.bert import Bert
from pdistill.networks.text.clip import ClipText
from pdistill.networks.text.encoder import TextEncoder
from pdistill.networks.text.tokenizer import Tokenizer, Tokens

__all__ = ["Bert", "ClipText", "TextEncoder", "Tokenizer", "Tokens"]
