"""The variant `imported`, which every config has that trains one teacher, and nothing before it."""

from typing import Any

from ml_collections import ConfigDict

from pdistill.experiment.defaults import copied, method_of
from pdistill.experiment.imported import Imported
from pdistill.methods import Teacher
from pdistill.methods.parts.balance import OUTPUT
from pdistill.runtime.own_code import is_own

KEPT = ("name", "resolution")  # keys of the teacher's stage that say nothing of its training


def with_imported_teacher(config: ConfigDict) -> ConfigDict:
    """The config with the model in the directory `config.teacher` for the teacher that it trains.

    It has no model section, since the networks are that model's, but for its `remat`, and no
    directory of a codec, which the model's card names; losses whose weights adapt are weighed at
    its output layer.

    Raises:
      ValueError: the config trains no teacher, or several, or a codec before it.
    """
    plain = copied(config)
    teachers = [stage["name"] for stage in plain["stages"] if stage["method"] == Teacher.name]
    if len(teachers) != 1:
        raise ValueError(
            "the variant imported is for configs that train one teacher; this one trains "
            f"{', '.join(teachers) or 'none'}"
        )
    first = plain["stages"][0]
    if first["name"] != teachers[0]:
        raise ValueError(
            "the variant imported is for configs whose first stage trains the teacher; "
            f"this one's is {first['name']}, method {first['method']}"
        )
    model = plain.pop("model", {})
    plain.pop("codec", None)
    arguments = model.get("network", {}).get("arguments", {})
    kept = {"remat": arguments["remat"]} if "remat" in arguments else {}
    stages = tuple(_imported(stage, kept) for stage in plain["stages"])
    return ConfigDict(plain | {"stages": stages})


def _imported(stage: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    if stage["method"] == Teacher.name:
        own = {key: stage[key] for key in KEPT if key in stage}
        return own | {"method": Imported.name} | kept
    of_ours = (base for base in (method_of(stage) or object).__mro__ if not is_own(base))
    weighs = any("layer" in vars(base).get("__annotations__", {}) for base in of_ours)
    return stage | ({"layer": OUTPUT} if weighs and stage.get("layer") else {})
