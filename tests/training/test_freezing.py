"""What the rules freeze: the fractions of D2O-F on the networks of its paper, and of ours."""

import jax
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule
from pdistill.networks import DhariwalUNet, DiffusersUNet, DiT, Network, SongUNet, UNet
from pdistill.training import PRESETS, count, merge, partition


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


class EdmShapes:
    """Names and shapes of the parameters of EDM's networks (Karras et al. 2022), nested."""

    def __init__(self, size, channels, multipliers, blocks, attention, *, adm, labels=0):
        self.tree = {}
        self.adm = adm
        self.embedding = 4 * channels
        noise = channels if adm else 2 * channels
        self.linear("map_layer0", noise, self.embedding)
        self.linear("map_layer1", self.embedding, self.embedding)
        if labels:
            self.tree["map_label"] = {"weight": shape(self.embedding, labels)}
        skips, width, residual = [], channels, 3
        for level, multiplier in enumerate(multipliers):
            n = size >> level
            if level == 0:
                self.conv(f"enc/{n}x{n}_conv", 3, width, 3)
            else:
                self.block(f"enc/{n}x{n}_down", width, width, resample=True)
                if not adm:
                    self.conv(f"enc/{n}x{n}_aux_residual", residual, width, 3)
                    residual = width
            skips.append(width)
            for i in range(blocks):
                new = channels * multiplier
                self.block(f"enc/{n}x{n}_block{i}", width, new, attention=n in attention)
                width = new
                skips.append(width)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            n = size >> level
            if level == len(multipliers) - 1:
                self.block(f"dec/{n}x{n}_in0", width, width, attention=True)
                self.block(f"dec/{n}x{n}_in1", width, width)
            else:
                self.block(f"dec/{n}x{n}_up", width, width, resample=True)
            for i in range(blocks + 1):
                attend = n in attention and (adm or i == blocks)
                new = channels * multiplier
                self.block(f"dec/{n}x{n}_block{i}", width + skips.pop(), new, attention=attend)
                width = new
        self.norm("out_norm" if adm else f"dec/{size}x{size}_aux_norm", width)
        self.conv("out_conv" if adm else f"dec/{size}x{size}_aux_conv", width, 3, 3)

    def add(self, path, **leaves):
        *folders, name = path.split("/")
        node = self.tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaves

    def linear(self, path, inputs, outputs):
        self.add(path, weight=shape(outputs, inputs), bias=shape(outputs))

    def conv(self, path, inputs, outputs, kernel):
        self.add(path, weight=shape(outputs, inputs, kernel, kernel), bias=shape(outputs))

    def norm(self, path, channels):
        self.add(path, weight=shape(channels), bias=shape(channels))

    def block(self, path, inputs, outputs, *, attention=False, resample=False):
        self.norm(f"{path}/norm0", inputs)
        self.conv(f"{path}/conv0", inputs, outputs, 3)
        self.linear(f"{path}/affine", self.embedding, (2 if self.adm else 1) * outputs)
        self.norm(f"{path}/norm1", outputs)
        self.conv(f"{path}/conv1", outputs, outputs, 3)
        if inputs != outputs or (resample and not self.adm):
            self.conv(f"{path}/skip", inputs, outputs, 1)
        if attention:
            self.norm(f"{path}/norm2", outputs)
            self.conv(f"{path}/qkv", outputs, 3 * outputs, 1)
            self.conv(f"{path}/proj", outputs, outputs, 1)


@pytest.mark.parametrize(
    ("settings", "total", "frozen"),
    [
        (dict(size=32, channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), adm=False),
         56_395_523, 0.8440),
        (dict(size=64, channels=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,),
              adm=False), 62_758_787, 0.8384),
        (dict(size=64, channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8),
              adm=True, labels=1000), 295_899_267, 0.7877),
    ],
    ids=["cifar10", "ffhq64", "imagenet64"],
)  # fmt: skip
def test_d2o_f_on_the_papers_networks(settings, total, frozen):
    """docs/methods/gan.md, A6: parameters to the last, and the fraction to its four digits."""
    tree = EdmShapes(**settings).tree
    assert count(tree) == total
    _, held = partition(tree, PRESETS["d2o_f"])
    assert round(count(held) / total, 4) == frozen


DIT = DiT(out_channels=1, features=64, depth=4)
UNET = UNet(out_channels=3)  # the paper's on CIFAR-10
ADM = UNet(  # and on ImageNet 64
    out_channels=3, channels=192, embedding_channels=768, multipliers=(1, 2, 3, 4),
    attention_sizes=(8, 16, 32), head_channels=64, num_labels=1000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("network", "image", "preset", "learning"),
    [
        (DIT, (8, 8, 1), "dit", 0.20),
        (DIT, (8, 8, 1), "dit_qkv", 0.04),
        (ADM, (64, 64, 3), "d2o_f", 1 - 0.7877),  # as above, by EDM's names
        (UNET, (32, 32, 3), "unet", 0.10),
        (UNET, (32, 32, 3), "unet_qkv", 0.05),
        (DhariwalUNet(3, num_labels=1000), (64, 64, 3), "d2o_f", 1 - 0.7877),
        (DhariwalUNet(3, num_labels=1000), (64, 64, 3), "unet", 0.12),
        (SongUNet(3, multipliers=(2, 2, 2)), (32, 32, 3), "unet_qkv", 0.05),
        (DiffusersUNet(3), (32, 32, 3), "d2o_f", 0.24),
        (DiffusersUNet(3), (32, 32, 3), "unet", 0.17),
    ],
)
def test_presets_leave_few_to_learn(network, image, preset, learning):
    blank = Network(None, module=network, head="v", schedule=CosineSchedule(), shape=image)
    shapes = blank.shapes.params
    learns, held = partition(shapes, PRESETS[preset])
    assert count(learns) / count(shapes) == pytest.approx(learning, abs=0.01)
    assert count(learns) + count(held) == count(shapes)
    assert jax.tree.structure(merge(learns, held)) == jax.tree.structure(shapes)


def test_partition_and_merge():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
    learns, held = partition(tree, ("a/kernel", "^b/"))
    assert learns == {"a": {"bias": 2}}
    assert held == {"a": {"kernel": 1}, "b": {"kernel": 3}}
    assert merge(learns, held) == tree
    assert partition(tree, ()) == (tree, {})


def test_a_pattern_for_another_network_is_an_error():
    with pytest.raises(ValueError, match="no parameter's path has 'conv1'"):
        partition({"a": {"kernel": 1}}, ("conv1",))
