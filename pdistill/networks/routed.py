"""Several networks of one form as a single one: each label, or each kind of prompt, has its own."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill.networks.conditioning import NOTHING, Conditioning


class Routed(nn.Module):
    """Calls, for each example, the network of its label or its prompt, and no other.

    The examples are sorted by network and padded to blocks of one network each, so that a call of
    B examples costs at most B + K * block of them, whatever the labels are; their order is kept.
    The blocks follow each other, on a mesh too: each of its devices computes all.

    Attributes:
      network: K copies of it have the parameters {"networks": a leading axis of K on each}.
      routes: the network, 0 .. K - 1, of each label; () to go by prompts.
      block: examples in a block; smaller ones waste less and run slower.
      by_prompts: K, to go by the nearest of the parameters "centres" [K, P] to the pooled
        embedding; 0 to go by labels.
    """

    network: nn.Module
    routes: tuple[int, ...] = ()
    block: int = 16
    by_prompts: int = 0

    @property
    def num_labels(self) -> int:
        return len(self.routes)

    @property
    def text_pooled(self) -> int:
        return getattr(self.network, "text_pooled", 0)

    @property
    def text_tokens(self) -> int:
        return getattr(self.network, "text_tokens", 0)

    @nn.compact
    def __call__(
        self, z: Array, logsnr: Array, told: Conditioning = NOTHING, *, train: bool = False
    ) -> Array:
        told = Conditioning(label=told.label, text=told.text)
        network, num = self.network.clone(parent=None), self.by_prompts or max(self.routes) + 1

        def init(key):
            one = jax.tree.map(lambda a: a[:1], (z, logsnr, told))
            return network.init(key, *one)["params"]

        params = self.param("networks", lambda key: jax.vmap(init)(jax.random.split(key, num)))
        places, networks = block_places(self._routes(told), num, self.block)

        def call(block):
            k, *inputs = block
            own = jax.tree.map(lambda a: a[k], params)
            return network.apply({"params": own}, *inputs, train=train)

        inputs = jax.tree.map(
            lambda a: into_blocks(a, places, networks.shape[0], self.block), (z, logsnr, told)
        )
        outputs = jax.lax.map(call, (networks, *inputs))
        return outputs.reshape(-1, *outputs.shape[2:])[places]

    def _routes(self, told: Conditioning) -> Array:
        """The network of each example, [B]."""
        if self.by_prompts:
            shape = (self.by_prompts, self.text_pooled)
            centres = self.param("centres", nn.initializers.zeros, shape, jnp.float32)
            if told.text is None:
                raise ValueError("a network that is routed by prompts needs some")
            return nearest(told.text.pooled, centres)
        if told.label is None:
            raise ValueError("a routed network needs labels")
        return jnp.array(self.routes)[told.label]


def nearest(pooled: Array, centres: Array) -> Array:
    """The nearest of centres [K, P] to each of [..., P], int [...]."""
    square = jnp.sum(jnp.square(centres), -1) / 2
    return jnp.argmin(jnp.expand_dims(square, range(pooled.ndim - 1)) - pooled @ centres.T, axis=-1)


def block_places(routes: Array, num: int, block: int) -> tuple[Array, Array]:
    """Places of examples, if examples of one network fill blocks of their own.

    Args:
      routes: [B], in 0 .. num - 1.

    Returns:
      Places [B] in blocks laid end to end, all different, and the network of each block, [n] with
      n = ceil(B / block) + num - 1, as many as any routes may need.
    """
    ours = routes[:, None] == jnp.arange(num)[None]
    counts = ours.sum(0)
    ends = jnp.cumsum(-(-counts // block))  # in blocks
    starts = ends - -(-counts // block)
    ranks = jnp.take_along_axis(jnp.cumsum(ours, 0), routes[:, None], 1)[:, 0] - 1
    total = -(-routes.shape[0] // block) + num - 1
    networks = jnp.searchsorted(ends, jnp.arange(total), side="right")
    return block * starts[routes] + ranks, jnp.minimum(networks, num - 1)


def into_blocks(a: Array, places: Array, total: int, block: int) -> Array:
    """Puts rows [B, ...] in their places: [total, block, ...], zeros elsewhere."""
    blocks = jnp.zeros((total * block, *a.shape[1:]), a.dtype).at[places].set(a)
    return blocks.reshape(total, block, *a.shape[1:])
