"""The two building blocks of the stacked hourglass network."""

from torch import nn


class Conv(nn.Module):
    """A convolution with "same" padding, then ReLU and BatchNorm where asked (norm after ReLU).

    Maps (B, inp_dim, H, W) to (B, out_dim, H / stride, W / stride). Paper, section 3.2.
    """

    def __init__(self, inp_dim, out_dim, kernel_size=3, stride=1, bn=False, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(inp_dim, out_dim, kernel_size, stride, padding=(kernel_size - 1) // 2)
        self.relu = nn.ReLU(inplace=True) if relu else None
        self.bn = nn.BatchNorm2d(out_dim) if bn else None

    def forward(self, x):
        x = self.conv(x)
        if self.relu is not None:
            x = self.relu(x)
        if self.bn is not None:
            x = self.bn(x)
        return x


class Hourglass(nn.Module):
    """One hourglass: n times down and up again, with a skip connection at every size.

    Maps (B, f, H, W) to the same shape; H and W are multiples of 2 ** n. Each halving widens the
    features by `increase`.
    """

    def __init__(self, n, f, bn=False, increase=128):
        super().__init__()
        nf = f + increase
        self.up1 = Conv(f, f, bn=bn)
        self.pool1 = nn.MaxPool2d(2, 2)
        self.low1 = Conv(f, nf, bn=bn)
        self.low2 = Hourglass(n - 1, nf, bn, increase) if n > 1 else Conv(nf, nf, bn=bn)
        self.low3 = Conv(nf, f)
        self.up2 = nn.Upsample(scale_factor=2, mode='nearest')

    def forward(self, x):
        low = self.low3(self.low2(self.low1(self.pool1(x))))
        return self.up1(x) + self.up2(low)
