"""The networks that PyTorch trains in torch_cpu.py and torch_gpu.py: a ResNet, torch.nn.TransformerEncoderLayer over the
mini-batch behind its pooled features, one classifier on both streams. Shapes and names as in worker/nn/resnet.c."""
import pathlib
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/golden"))
from nets import CifarResNet  # noqa: E402


def projection(ci, co, stride):
    """The shortcut where shapes differ."""
    if stride == 1 and ci == co:
        return None
    return nn.Sequential(nn.Conv2d(ci, co, 1, stride, bias=False), nn.BatchNorm2d(co))


class Basic(nn.Module):
    """3×3, 3×3."""
    expansion = 1

    def __init__(self, ci, c, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ci, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.downsample = projection(ci, c, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 to four times the channels, the stride in the 3×3 (torchvision's)."""
    expansion = 4

    def __init__(self, ci, c, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ci, c, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c)
        self.downsample = projection(ci, 4 * c, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ImageResNet(nn.Module):
    """Four stages; the stem is 7×7/2 and a max pool, or, for CIFAR's images, 3×3 alone."""

    def __init__(self, block, blocks, channels, cifar_stem):
        super().__init__()
        self.pool = not cifar_stem
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False) if cifar_stem else \
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        ci, stages = 64, []
        for s, n in enumerate(blocks):
            c = 64 << s
            for i in range(n):
                stages.append(block(ci, c, 2 if i == 0 and s else 1))
                ci = c * block.expansion
        self.stages = nn.Sequential(*stages)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        return self.stages(x).mean((2, 3))


# name → pooled features, what makes the backbone for images of so many channels
BACKBONES = {
    "resnet8": (64, lambda ch: CifarResNet(1, ch)),
    "resnet20": (64, lambda ch: CifarResNet(3, ch)),
    "resnet32": (64, lambda ch: CifarResNet(5, ch)),
    "resnet18": (512, lambda ch: ImageResNet(Basic, (2, 2, 2, 2), ch, False)),
    "cifar-resnet18": (512, lambda ch: ImageResNet(Basic, (2, 2, 2, 2), ch, True)),
    "resnet50": (2048, lambda ch: ImageResNet(Bottleneck, (3, 4, 6, 3), ch, False)),
}


class Net(nn.Module):
    def __init__(self, arch, channels, classes, batchformer=True, heads=4, dropout=0.5):
        super().__init__()
        if arch not in BACKBONES:
            raise ValueError(f"arch {arch!r} found; {', '.join(BACKBONES)} are accepted")
        width, make = BACKBONES[arch]
        self.backbone = make(channels)
        self.batchformer = nn.TransformerEncoderLayer(width, heads, width, dropout) if batchformer else None
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        x = self.backbone(x)
        if self.batchformer is not None:
            x = torch.cat([x, self.batchformer(x.unsqueeze(1)).squeeze(1)])
        return self.classifier(x)


class Layer(nn.Module):
    """The BatchFormer alone on N × C features, and a classifier that makes a loss of it. batch_first: the N rows are
    given as (1, N, C), else as (N, 1, C); the function is the same."""

    def __init__(self, features, classes, heads, dropout, batch_first):
        super().__init__()
        self.dim = 0 if batch_first else 1
        self.batchformer = nn.TransformerEncoderLayer(features, heads, features, dropout, batch_first=batch_first)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x):
        return self.classifier(self.batchformer(x.unsqueeze(self.dim)).squeeze(self.dim))


def sgd(model):
    """The fused optimiser where there is one."""
    args = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    try:
        return torch.optim.SGD(model.parameters(), fused=True, **args)
    except (TypeError, RuntimeError):
        return torch.optim.SGD(model.parameters(), **args)
