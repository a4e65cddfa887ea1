"""Build hook of hatchling: the tag of a wheel with programs of one platform."""

import os

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    def initialize(self, version, build_data):
        tag = os.environ.get("SEPAL_WHEEL_TAG")
        if not tag:
            raise RuntimeError("the wheel is made by `just wheel` in the repository of Sepal")
        build_data.update(pure_python=False, tag=tag)
