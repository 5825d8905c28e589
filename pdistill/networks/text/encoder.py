"""A text encoder as a value: a network's parameters, and its tokenizer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from pdistill.networks.conditioning import Text
from pdistill.networks.text.tokenizer import Tokenizer, Tokens

LAYERS = ("last", "penultimate")
MULTIPLE = 16  # lengths that batches are padded to, if their encoder does not see pads


class TextEncoder(struct.PyTreeNode):
    """A text encoder with its parameters: prompts to what a network is told of them.

    Only `params` is traced, as of `Codec`; a *blank* encoder has None for them.

    Attributes:
      params: nested dictionary of arrays, or None.
      module: a `Bert` or a `ClipText`.
      tokenizer: prompts to ids.
      layer: the hidden states that are tokens, "last" or "penultimate"; CLIP's last ones are
        normalised, those of the last layer but one are not.
    """

    params: Any
    module: nn.Module = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    layer: str = struct.field(pytree_node=False, default="last")

    def __repr__(self) -> str:
        """Everything but the values of the parameters, of which the number is said."""
        count = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return (
            f"TextEncoder({type(self.module).__name__}, {self.length} tokens of "
            f"{self.module.features}, layer={self.layer!r}, {count:,} parameters)"
        )

    @property
    def length(self) -> int:
        """Tokens of each prompt, pads included."""
        return self.tokenizer.length

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of a prompt's embedding and of each token's, P and D."""
        features = self.module.features
        return getattr(self.module, "projection", 0) or features, features

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Ids of prompts and their mask, [B, L] each, NumPy arrays; as `Tokenizer`."""
        return self.tokenizer(prompts)

    def __call__(self, ids: Array, mask: Array) -> Text:
        """Ids [B, L] int and their mask [B, L] bool -> `Text` with tokens [B, L, D], pooled [B, P].

        Pooled is BERT's sentence, or CLIP's embedding of the prompt, projected if it has a
        projection. The numbers are those of the published code.

        Raises:
          ValueError: the encoder has fewer positions.
        """
        if ids.shape[1] > self.module.positions:
            raise ValueError(
                f"this text encoder takes prompts of {self.module.positions} tokens at most; got "
                f"{ids.shape[1]}"
            )
        with jax.default_matmul_precision("float32"):  # the same embeddings on every machine
            tokens, pooled = self.module.apply(
                {"params": self.params}, ids, mask, penultimate=self.layer == "penultimate"
            )
        return Text(mask, tokens, pooled)

    def encode(self, prompts: Sequence[str], batch_size: int = 64, *, tokens: bool = True) -> Text:
        """`Text` of prompts in NumPy arrays: tokens [N, L, D], pooled [N, P] and their mask.

        Args:
          prompts: cut as by `tokenize`.
          batch_size: prompts that are encoded together, at most.
          tokens: keep tokens, which take L times the memory of pooled; else they are None.
        """
        ids, mask = self.tokenize(prompts)
        num = len(ids)
        size = min(batch_size, 1 << max(num - 1, 0).bit_length())
        like = jax.eval_shape(_encode, self, ids[:1], mask[:1])
        text = Text(
            mask,
            np.zeros((num, *like.tokens.shape[1:]), like.tokens.dtype) if tokens else None,
            np.zeros((num, *like.pooled.shape[1:]), like.pooled.dtype),
        )

        def keep(rows: np.ndarray, made: Text) -> None:
            text.pooled[rows] = np.asarray(made.pooled)[: len(rows)]
            if tokens:
                text.tokens[rows, : made.tokens.shape[1]] = np.asarray(made.tokens)[: len(rows)]

        order = np.argsort(mask.sum(1), kind="stable")  # prompts of a batch are about as long
        running = []
        for start in range(0, num, size):
            rows = order[start : start + size]
            made = _encode(self, *self._batch(ids, mask, np.resize(rows, size)))
            running.append((rows, made))
            if len(running) > 1:  # while the next batch is computed
                keep(*running.pop(0))
        for rows, made in running:
            keep(rows, made)
        return text

    def _batch(self, ids: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> Tokens:
        """Some rows, without pads that nothing sees."""
        length = ids.shape[1]
        if self.module.masked:
            longest = int(mask[rows].sum(1).max())
            length = min(length, -(-longest // MULTIPLE) * MULTIPLE)
        return Tokens(ids[rows, :length], mask[rows, :length])

    @property
    def blank(self) -> "TextEncoder":
        """The same encoder without parameters: hashable."""
        return self.replace(params=None)

    @property
    def shapes(self) -> "TextEncoder":
        """The encoder with the shapes of its parameters, `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda: self.blank.init(jax.random.key(0)))

    def init(self, key: Array) -> "TextEncoder":
        """The encoder with fresh parameters."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return self.replace(params=self.module.init(key, ids, ids > 0)["params"])


@jax.jit
def _encode(encoder: TextEncoder, ids: Array, mask: Array) -> Text:
    return encoder(ids, mask)
