"""An exponential moving average of the generator's weights (``training.ema_decay``)."""

from collections.abc import Mapping

from timm.utils import ModelEmaV3
from torch import Tensor

from ammnet_sparse.models.ammnet import AMMNet


class AveragedWeights:
    """A generator whose weights are the moving average of a trained one's.

    Parameters and running statistics of batch normalization are both averaged. The decay grows with the steps, as
    1 - steps^(-2/3), up to the given one, so that early weights do not dominate a short run's average.

    Attributes:
        network: the average, to be evaluated and saved; never trained.
    """

    def __init__(self, trained: AMMNet, *, decay: float) -> None:
        self._average = ModelEmaV3(trained, decay=decay, use_warmup=True)
        network = self._average.module
        assert isinstance(network, AMMNet)
        self.network = network

    def update(self, trained: AMMNet, *, step: int) -> None:
        """Updates the average after a step; ``step`` counts from 1, where the average equals the weights."""
        self._average.update(trained, step=step)

    def restart(self, trained: AMMNet) -> None:
        """Sets the average to the given weights."""
        self._average.set(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the trained networks."""
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores ``state_dict``. Raises RuntimeError for one of another network."""
        self.network.load_state_dict(state)
