"""Building blocks of the dense network in plain ``torch.nn``. Volumes are [B, C, X, height, Y]."""

import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.sparse.blocks import Recomputable

BATCH_NORM_MOMENTUM = 0.1


class Down(nn.Module):
    """Average pooling over ``window`` (also its stride), 1x1x1 convolution, BN."""

    def __init__(self, in_channels: int, out_channels: int, *, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm3d(out_channels, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, volume: Tensor) -> Tensor:
        return self.norm(self.conv(F.avg_pool3d(volume, self.window, self.window)))


class DDRBlock(Recomputable):
    """Dimensional decomposition residual block: 1x1x1, then 1x1x3, 1x3x1 and 3x1x1 with residuals, then 1x1x1.

    ``stride`` divides all three axes, each in the convolution along that axis; ``dilation`` dilates each of the
    three along its own axis. It has ``planes * expansion`` output channels; with stride 1 the input is added
    unchanged, so these must be ``in_channels``.
    """

    def __init__(self, in_channels: int, planes: int, *, expansion: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = planes * expansion
        self.stride = stride
        self.conv1 = nn.Conv3d(in_channels, planes, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm3d(planes, momentum=BATCH_NORM_MOMENTUM)
        self.conv2 = _axis_conv(planes, axis=2, stride=stride, dilation=dilation)
        self.norm2 = nn.BatchNorm3d(planes, momentum=BATCH_NORM_MOMENTUM)
        self.conv3 = _axis_conv(planes, axis=1, stride=stride, dilation=dilation)
        self.norm3 = nn.BatchNorm3d(planes, momentum=BATCH_NORM_MOMENTUM)
        self.conv4 = _axis_conv(planes, axis=0, stride=stride, dilation=dilation)
        self.norm4 = nn.BatchNorm3d(planes, momentum=BATCH_NORM_MOMENTUM)
        self.conv5 = nn.Conv3d(planes, out_channels, kernel_size=1, bias=False)
        self.norm5 = nn.BatchNorm3d(out_channels, momentum=BATCH_NORM_MOMENTUM)
        if stride > 1:
            self.down2 = Down(planes, planes, window=(1, stride, 1))
            self.down3 = Down(planes, planes, window=(stride, 1, 1))
            self.down4 = Down(planes, planes, window=(stride, 1, 1))
            self.shortcut = Down(in_channels, out_channels, window=(stride, stride, stride))

    def forward(self, volume: Tensor) -> Tensor:
        return self.recomputed(self._run, volume)

    def _run(self, volume: Tensor) -> Tensor:
        along_y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(volume)))))
        # The residuals must reach the extents of what they are added to: height is divided first, then X.
        along_y_down = self.down2(along_y) if self.stride > 1 else along_y
        along_height = self.norm3(self.conv3(F.relu(along_y))) + along_y_down
        along_y_down = self.down3(along_y_down) if self.stride > 1 else along_y_down
        along_height_down = self.down4(along_height) if self.stride > 1 else along_height
        along_x = self.norm4(self.conv4(F.relu(along_height))) + along_y_down + along_height_down
        residual = self.shortcut(volume) if self.stride > 1 else volume
        return F.relu(self.norm5(self.conv5(F.relu(along_x))) + residual)


class Stage(nn.Sequential):
    """Four DDR blocks: one halves all axes, then dilations 1, 2 and 3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        planes = in_channels // 4
        strided = DDRBlock(in_channels, planes, expansion=out_channels // planes, stride=2)
        dilated = [DDRBlock(out_channels, out_channels // 4, expansion=4, dilation=dilation) for dilation in (1, 2, 3)]
        super().__init__(strided, *dilated)


class Stem(Recomputable):
    """Three 3x3x3 convolutions at full resolution, each with BN and ReLU."""

    def __init__(self, in_channels: int, hidden: tuple[int, int], *, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, hidden[0], kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(hidden[0], momentum=BATCH_NORM_MOMENTUM)
        self.conv2 = nn.Conv3d(hidden[0], hidden[1], kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(hidden[1], momentum=BATCH_NORM_MOMENTUM)
        self.conv3 = nn.Conv3d(hidden[1], out_channels, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm3d(out_channels, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, volume: Tensor) -> Tensor:
        return self.recomputed(self._run, volume)

    def _run(self, volume: Tensor) -> Tensor:
        volume = F.relu(self.norm1(self.conv1(volume)))
        volume = F.relu(self.norm2(self.conv2(volume)))
        return F.relu(self.norm3(self.conv3(volume)))


class Up(Recomputable):
    """Transposed convolution that doubles all axes, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm3d(out_channels, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, volume: Tensor) -> Tensor:
        return self.recomputed(self._run, volume)

    def _run(self, volume: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(volume)))


def _axis_conv(channels: int, *, axis: int, stride: int, dilation: int) -> nn.Conv3d:
    """A convolution of length 3 along one axis of (X, height, Y)."""

    def on_axis(value: int, *, elsewhere: int) -> tuple[int, int, int]:
        x, height, y = (value if index == axis else elsewhere for index in range(3))
        return x, height, y

    return nn.Conv3d(
        channels,
        channels,
        kernel_size=on_axis(3, elsewhere=1),
        stride=on_axis(stride, elsewhere=1),
        padding=on_axis(dilation, elsewhere=0),
        dilation=on_axis(dilation, elsewhere=1),
        bias=False,
    )
