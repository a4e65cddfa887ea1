"""Sepal: prompts, adapters and heads for frozen language models whose blocks run here or on servers.

Train a pipeline, predict with its run, or use the frozen blocks of a model in a loop of your own::

    import sepal

    run = sepal.train("pipeline.yaml")                  # or a dict, with data=a pandas or Arrow table
    print(run.metrics)
    print(run.predict(["a warm and funny film"])[0].label)

    blocks = sepal.RemoteBlocks("path/to/model", swarm=["10.0.0.5:4000"])
    hidden = blocks(blocks.embed(input_ids))            # differentiable, in tensors of PyTorch

:mod:`sepal.petals` has the classes of a Petals notebook. The command line ``sepal`` comes with this package.
"""

# libtorch first: the native module uses the one that this package loads.
import torch as _torch

_TORCH = "2.13.0"
if _torch.__version__.split("+")[0] != _TORCH:
    raise ImportError(f"sepal needs torch {_TORCH}, and torch {_torch.__version__} is installed: pip install torch=={_TORCH}")

from ._blocks import RemoteBlocks
from ._classifier import Classifier, Prediction, Predictions, load
from ._errors import SepalError
from ._run import Run, train
from ._sepal import __version__

__all__ = ["Classifier", "Prediction", "Predictions", "RemoteBlocks", "Run", "SepalError", "__version__", "load", "train"]
