"""Imports other people's models and exports our samplers; nothing that is read can execute.

Noise levels, heads and layouts of others are translated here and in
`networks.published.conventions`; nothing else knows them.
"""

from pdistill.interop.adm import convert_adm
from pdistill.interop.codecs import convert_ldm
from pdistill.interop.conversion import Conversion, with_codec, write_model
from pdistill.interop.diffusers import convert_diffusers
from pdistill.interop.edm import convert_edm
from pdistill.interop.edm2 import convert_edm2
from pdistill.interop.hub import read_folder, write_folder
from pdistill.interop.official_pd import convert_official_pd
from pdistill.interop.sit import convert_dit, convert_lightningdit, convert_sit
from pdistill.interop.stablehlo import export_sampler, write_sampler
from pdistill.interop.text import text_encoder
from pdistill.interop.weights import ConversionError

CONVERTERS = {
    "adm": convert_adm,
    "diffusers": convert_diffusers,
    "dit": convert_dit,
    "edm": convert_edm,
    "edm2": convert_edm2,
    "ldm": convert_ldm,
    "lightningdit": convert_lightningdit,
    "official_pd": convert_official_pd,
    "safetensors": read_folder,
    "sit": convert_sit,
}

__all__ = [
    "CONVERTERS",
    "Conversion",
    "ConversionError",
    "convert_adm",
    "convert_diffusers",
    "convert_dit",
    "convert_edm",
    "convert_edm2",
    "convert_ldm",
    "convert_lightningdit",
    "convert_official_pd",
    "convert_sit",
    "export_sampler",
    "read_folder",
    "text_encoder",
    "with_codec",
    "write_folder",
    "write_model",
    "write_sampler",
]
